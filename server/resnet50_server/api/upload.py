"""An image that arrives in chunks, rejected as soon as it must be."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import math
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, TypeAlias

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_server.errors import DataLoss, InvalidImage, InvalidRequest, Stalled
from resnet50_server.images.decode_guard import FIELD
from resnet50_server.images.formats import HEADER_BYTES, check_header
from resnet50_server.images.limits import check_resized
from resnet50_server.images.preprocessed import FIELD as PREPROCESSED_FIELD
from resnet50_server.images.preprocessed import check_transform, input_bytes
from resnet50_server.images.raw import check_raw, lengths
from resnet50_server.images.source import PreprocessedImage, RawImage, Source
from resnet50_server.images.transform import Transform
from resnet50_server.inference.pipeline import Pipeline

from .call import Call
from .image_source import parse_layout

Part: TypeAlias = inference_pb2.ClassifyUploadRequest | inference_pb2.EmbedUploadRequest
SHA256_BYTES = 32
# A header that is incomplete by then is left to the decoder.
MAX_HEADER_BYTES = 2**20
# The messages of a client that cancels end a moment before gRPC reports it, mostly 0.1 ms. Every
# upload pays for this wait, so it is shorter than the longest (`guard.CANCEL_GRACE_S`, which only
# calls without a request pay for); at worst, the image of a cancelled upload is decoded in vain.
USUAL_CANCEL_GRACE_S = 0.001


class Upload:
    """Reads the parts of one upload: its options, then chunks.

    Args:
        parts: As they arrive.
        pipeline: For its limits and its decode pool.
        call: The RPC, with its permit.
        idle_timeout_s: Maximum pause between parts, in seconds.
        timeout_s: Maximum duration of the upload, from now on, in seconds.
    """

    def __init__(
        self,
        parts: AsyncIterator[Part],
        pipeline: Pipeline,
        call: Call,
        idle_timeout_s: float,
        timeout_s: float,
    ) -> None:
        self._parts = parts
        self._pipeline = pipeline
        self._call = call
        self._idle_timeout_s = idle_timeout_s
        self._timeout_s = timeout_s
        self._ends = asyncio.get_running_loop().time() + timeout_s
        self._sha256 = b""
        self._raw: image_pb2.RawImage | None = None
        self._transform_digest = ""

    async def options(self) -> Any:
        """Read the first message, which has the options.

        Raises:
            InvalidRequest: It has no options, or there is none.
            Stalled: It does not arrive.
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
        self._raw = options.raw if options.HasField("raw") else None
        self._transform_digest = options.transform_digest
        if self._raw is not None and self._transform_digest:
            raise InvalidRequest(
                "options.transform_digest",
                "is set, and so is options.raw: an upload is either of the two; leave one out",
            )
        return options

    async def image(self, transform: Transform) -> Source:
        """Read the whole image; the call's permit grows with what arrives.

        Args:
            transform: The variant's, for the check of the header.

        Returns:
            An encoded file, or the pixels that the options describe.

        Raises:
            InvalidImage: Too long or short, empty, no image, or too many pixels.
            InvalidRequest: A part is not a chunk, or a chunk is empty.
            TransformMismatch: It was preprocessed by another transform.
            DataLoss: The digest differs from that in the options.
            Stalled: The client pauses, or takes, for too long.
            Overloaded: The bytes exceed a limit of admission control.
        """
        raw = None
        if self._raw is not None:
            raw = parse_layout(self._raw, self._pipeline.limits.max_pixels)
            check_resized("image.raw", raw.height, raw.width, transform, self._pipeline.limits)
        # A BytesIO grows like a bytearray, and returns its bytes without a copy.
        limits, arrived, length = self._pipeline.limits, io.BytesIO(), 0
        max_bytes = limits.max_bytes if raw is None else lengths(raw)[0]
        is_file = raw is None and not self._transform_digest
        if self._transform_digest:
            check_transform(self._transform_digest, transform, "options.transform_digest")
            max_bytes = input_bytes(transform)
        permit = self._call.permit
        assert permit is not None  # set by the guard
        in_thread = partial(self._pipeline.decode_pool.submit, context=self._call)
        # The header is checked early, and again whenever the length has doubled.
        check_at: float = HEADER_BYTES if is_file else math.inf
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
            if length > max_bytes:
                raise _too_long(max_bytes, raw, is_file)
            permit.add_bytes(len(chunk))
            arrived.write(chunk)
            del part, chunk  # else they would be referenced until the next ones arrive
            if length >= check_at:
                with arrived.getbuffer() as view:
                    start = bytes(view[:MAX_HEADER_BYTES])
                known = await in_thread(partial(check_header, start, transform, limits))
                done = known or length >= MAX_HEADER_BYTES
                check_at = math.inf if done else 2 * length
        if not length and is_file:
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
        if self._transform_digest:
            return PreprocessedImage(image, self._transform_digest)
        if raw is None:
            return image
        raw = raw._replace(pixels=image)
        check_raw(raw, limits.max_pixels)
        return raw

    async def _next(self) -> Part | None:
        """Return the next part; None after the last."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        left_s, late = self._ends - loop.time(), False
        if left_s <= 0:  # a part may be there at once
            raise self._took_too_long()

        def on_timeout() -> None:
            nonlocal late
            late = True
            task.cancel()

        # Not wait_for: on Python below 3.12 it makes a task of its own, and misses a cancellation
        # that arrives together with a part.
        timer = loop.call_later(min(self._idle_timeout_s, left_s), on_timeout)
        try:
            part = await anext(self._parts, None)
            if part is None:
                # Or the client has cancelled: then nothing is decoded.
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
            self._pipeline.events.cancelled(self._call, "upload")
            raise
        finally:
            timer.cancel()

    def _took_too_long(self) -> Stalled:
        return Stalled(
            f"the image did not arrive within {self._timeout_s:g} s (upload_timeout_s); send it"
            " faster, or a smaller one"
        )


def _too_long(max_bytes: int, raw: RawImage | None, is_file: bool) -> InvalidImage:
    if raw is None and not is_file:
        return InvalidImage(
            f"{PREPROCESSED_FIELD}.pixels",
            f"has more than the {max_bytes} bytes of the variant's input in RGB",
            kind="bad_raw",
        )
    if raw is None:
        return InvalidImage(
            FIELD,
            f"has more than {max_bytes} bytes, the limit (max_image_bytes); send a smaller or more"
            " compressed image",
            kind="too_many_bytes",
        )
    return InvalidImage(
        "image.raw.pixels",
        f"has more than the {max_bytes} bytes of {raw.width} x {raw.height} pixels in its format;"
        " send packed rows and nothing behind them",
        kind="bad_raw",
    )


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
