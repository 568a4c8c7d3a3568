"""An image that arrives in chunks, refused as soon as it is hopeless."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import math
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, TypeAlias

from resnet50.v1 import inference_pb2

from ..admission import Place
from ..call import CALL
from ..errors import DataLoss, InvalidImage, InvalidRequest, Stalled
from ..file_guard import FIELD
from ..image_file import HEADER_BYTES, check_header
from ..pipeline import Pipeline
from ..transform import Transform

Part: TypeAlias = inference_pb2.ClassifyUploadRequest | inference_pb2.EmbedUploadRequest
SHA256_BYTES = 32
# A header that is not complete by then is left to the decoder to judge.
MAX_HEADER_BYTES = 2**20
# The messages of a caller who has left end a moment before gRPC says so: some 0.1 ms.
LEAVING_S = 0.001


class Upload:
    """The parts of one upload, in their order: options once, then chunks.

    Args:
        parts: As they arrive.
        pipeline: For its limits and its decode pool.
        idle_timeout_s: How long the sender may be silent, in seconds.
    """

    def __init__(
        self, parts: AsyncIterator[Part], pipeline: Pipeline, idle_timeout_s: float
    ) -> None:
        self._parts = parts
        self._pipeline = pipeline
        self._idle_timeout_s = idle_timeout_s
        self._sha256 = b""

    async def options(self) -> Any:
        """Return what the first message must hold: the options of the parts' kind.

        Raises:
            InvalidRequest: It holds something else, or there is none.
            Stalled: It does not come.
        """
        part = await self._next()
        if part is None or part.WhichOneof("part") != "options":
            raise InvalidRequest(
                "options", "is missing: the first message of an upload holds its options"
            )
        options = part.options
        if options.sha256 and len(options.sha256) != SHA256_BYTES:
            raise InvalidRequest(
                "options.sha256",
                f"has {len(options.sha256)} bytes, must have {SHA256_BYTES}, or none",
            )
        self._sha256 = options.sha256
        return options

    async def image(self, transform: Transform, place: Place) -> bytes:
        """Return the whole image.

        Args:
            transform: The variant's, for the check of the header.
            place: Grows with what arrives.

        Raises:
            InvalidImage: Too long, empty, no image, or too many pixels.
            InvalidRequest: A part is not a chunk.
            DataLoss: The digest is not that of the options.
            Stalled: The sender is silent for too long.
            Overloaded: The server has no room for more bytes.
        """
        # A BytesIO grows like a bytearray, and gives its bytes without a copy.
        limits, arrived, length = self._pipeline.limits, io.BytesIO(), 0
        # The header is looked at early, and again each time twice as much is there.
        look_at: float = HEADER_BYTES
        while (part := await self._next()) is not None:
            if part.WhichOneof("part") != "chunk":
                raise InvalidRequest(
                    "options" if part.HasField("options") else "chunk",
                    "after the first message, an upload holds chunks only",
                )
            chunk = part.chunk
            length += len(chunk)
            if length > limits.max_bytes:
                raise InvalidImage(
                    FIELD,
                    f"has more than {limits.max_bytes} bytes, the limit (max_image_bytes); send a"
                    " smaller or more compressed image",
                    kind="too_many_bytes",
                )
            place.grow(len(chunk))
            arrived.write(chunk)
            if length >= look_at:
                with arrived.getbuffer() as view:
                    start = bytes(view[:MAX_HEADER_BYTES])
                known = await self._pipeline.decode_pool.run(
                    partial(check_header, start, transform, limits)
                )
                done = known or length >= MAX_HEADER_BYTES
                look_at = math.inf if done else 2 * length
        if not length:
            raise InvalidImage(FIELD, "has 0 bytes; send chunks after the options", kind="empty")
        image = arrived.getvalue()
        del arrived
        if self._sha256:
            digest = await self._pipeline.decode_pool.run(partial(_sha256, image))
            if not hmac.compare_digest(digest, self._sha256):
                raise DataLoss(
                    f"options.sha256: the {len(image)} bytes that arrived have {digest.hex()}, not"
                    f" {self._sha256.hex()}; something changed them on the way: send them again"
                )
        return image

    async def _next(self) -> Part | None:
        """Return the next part; None after the last."""
        task, timeout_s = asyncio.current_task(), self._idle_timeout_s
        assert task is not None
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            task.cancel()

        # Not wait_for: on Python below 3.12 it makes a task of its own, and hides that the caller
        # has left if that happens in the turn in which a part arrives.
        timer = asyncio.get_running_loop().call_later(timeout_s, give_up)
        try:
            part = await anext(self._parts, None)
            if part is None:
                # Or the caller has left: nothing is decoded of what it has sent.
                await asyncio.sleep(LEAVING_S)
            return part
        except asyncio.CancelledError:
            if late:
                raise Stalled(
                    f"nothing arrived for {timeout_s:g} s (upload_idle_timeout_s); send without"
                    " pauses"
                ) from None
            self._pipeline.observer.gave_up(CALL.get(), "upload")
            raise
        finally:
            timer.cancel()


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
