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
from resnet50_server.context import CURRENT_REQUEST, RequestContext
from resnet50_server.errors import DataLoss, InvalidImage, InvalidRequest, Stalled
from resnet50_server.images.decode_guard import FIELD
from resnet50_server.images.formats import HEADER_BYTES, check_header
from resnet50_server.images.transform import Transform
from resnet50_server.inference.pipeline import Pipeline

Part: TypeAlias = inference_pb2.ClassifyUploadRequest | inference_pb2.EmbedUploadRequest
SHA256_BYTES = 32
# A header that is not complete by then is left to the decoder to judge.
MAX_HEADER_BYTES = 2**20
# The messages of a caller who has left end a moment before gRPC says so, mostly some 0.1 ms. Every
# upload pays for the wait, so it is not as long as the longest (`boundary.LEAVING_S`, which only
# calls without a request pay for): of who is missed here, an image is decoded in vain at worst.
USUAL_CANCEL_GRACE_S = 0.001


class Upload:
    """The parts of one upload, in their order: options once, then chunks.

    Args:
        parts: As they arrive.
        pipeline: For its limits and its decode pool.
        idle_timeout_s: How long the sender may be silent, in seconds.
        timeout_s: How long all parts together may take from now on, in seconds.
    """

    def __init__(
        self,
        parts: AsyncIterator[Part],
        pipeline: Pipeline,
        idle_timeout_s: float,
        timeout_s: float,
    ) -> None:
        self._parts = parts
        self._pipeline = pipeline
        self._idle_timeout_s = idle_timeout_s
        self._timeout_s = timeout_s
        self._ends = asyncio.get_running_loop().time() + timeout_s
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

    async def image(self, transform: Transform, call: RequestContext) -> bytes:
        """Return the whole image.

        Args:
            transform: The variant's, for the check of the header.
            call: Its permit grows with what arrives; its deadline and priority are
                those of what runs in threads.

        Raises:
            InvalidImage: Too long, empty, no image, or too many pixels.
            InvalidRequest: A part is not a chunk, or a chunk is empty.
            DataLoss: The digest is not that of the options.
            Stalled: The sender is silent, or takes, for too long.
            Overloaded: The server has no room for more bytes.
        """
        # A BytesIO grows like a bytearray, and gives its bytes without a copy.
        limits, arrived, length = self._pipeline.limits, io.BytesIO(), 0
        in_thread = partial(self._pipeline.decode_pool.submit, context=call)
        assert call.permit is not None  # set by the guard
        # The header is looked at early, and again each time twice as much is there.
        look_at: float = HEADER_BYTES
        while (part := await self._next()) is not None:
            if part.WhichOneof("part") != "chunk":
                raise InvalidRequest(
                    "options" if part.HasField("options") else "chunk",
                    "after the first message, an upload holds chunks only",
                )
            chunk = part.chunk
            if not chunk:
                raise InvalidRequest("chunk", "is empty; send chunks of at least one byte")
            length += len(chunk)
            if length > limits.max_bytes:
                raise InvalidImage(
                    FIELD,
                    f"has more than {limits.max_bytes} bytes, the limit (max_image_bytes); send a"
                    " smaller or more compressed image",
                    kind="too_many_bytes",
                )
            call.permit.add_bytes(len(chunk))
            arrived.write(chunk)
            del part, chunk  # or both would be kept until the next ones are there
            if length >= look_at:
                with arrived.getbuffer() as view:
                    start = bytes(view[:MAX_HEADER_BYTES])
                known = await in_thread(partial(check_header, start, transform, limits))
                done = known or length >= MAX_HEADER_BYTES
                look_at = math.inf if done else 2 * length
        if not length:
            raise InvalidImage(FIELD, "has 0 bytes; send chunks after the options", kind="empty")
        image = arrived.getvalue()
        del arrived
        if self._sha256:
            digest = await in_thread(partial(_sha256, image))
            if not hmac.compare_digest(digest, self._sha256):
                raise DataLoss(
                    f"options.sha256: the {len(image)} bytes that arrived have {digest.hex()}, not"
                    f" {self._sha256.hex()}; something changed them on the way: send them again"
                )
        return image

    async def _next(self) -> Part | None:
        """Return the next part; None after the last."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        left_s, late = self._ends - loop.time(), False
        if left_s <= 0:  # a part may be there at once
            raise self._took_too_long()

        def give_up() -> None:
            nonlocal late
            late = True
            task.cancel()

        # Not wait_for: on Python below 3.12 it makes a task of its own, and hides that the caller
        # has left if that happens in the turn in which a part arrives.
        timer = loop.call_later(min(self._idle_timeout_s, left_s), give_up)
        try:
            part = await anext(self._parts, None)
            if part is None:
                # Or the caller has left: nothing is decoded of what it has sent.
                await asyncio.sleep(USUAL_CANCEL_GRACE_S)
            return part
        except asyncio.CancelledError:
            if late and left_s <= self._idle_timeout_s:
                raise self._took_too_long() from None
            if late:
                raise Stalled(
                    f"nothing arrived for {self._idle_timeout_s:g} s (upload_idle_timeout_s); send"
                    " without pauses"
                ) from None
            self._pipeline.events.cancelled(CURRENT_REQUEST.get(), "upload")
            raise
        finally:
            timer.cancel()

    def _took_too_long(self) -> Stalled:
        return Stalled(
            f"the image did not arrive within {self._timeout_s:g} s (upload_timeout_s); send it"
            " faster, or a smaller one"
        )


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
