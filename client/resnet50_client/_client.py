# Generated from _async_client.py by client/generate_sync.py; do not edit.
"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from . import _codec, _unary, types
from ._arguments import check_images
from ._bulk_client import BulkClient
from ._config import Connection, Priority
from ._frames import DEFAULT_WINDOW, Delivery, StreamKind, StreamLimits
from ._sync_stream import Stream
from ._types.results import Classification, Dtype, Embedding
from .images import ImageInput, PixelFormat

Result = TypeVar("Result")


class Client(BulkClient):
    """Blocking client of a ResNet50 server, or of several replicas (round-robin).

    Thread-safe. Create it after a fork, not before.
    """

    def classify(
        self,
        image: ImageInput,
        *,
        variant: str | None = None,
        top_k: int | None = None,
        min_probability: float | None = None,
        include_embedding: bool = False,
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Classification:
        """Classify an image.

        Args:
            image: A path, bytes, a binary file, a PIL image, a numpy array or a torch tensor; see
                `ImageInput`.
            variant: Name of the variant, e.g. "IMAGENET1K_V2"; None for the client's default
                variant, or the server's.
            top_k: Number of categories; None for 5, or all if the variant has fewer.
            min_probability: Omit categories below this, 0 to 1. Default: those below their
                threshold, if the variant has thresholds.
            include_embedding: Also return the embedding; it needs no second forward pass.
            background: Background of transparent pixels: "white", "black", "#rrggbb", or "none" to
                drop alpha; None for the variant's.
            pixel_format: Layout of an array: "RGB", "BGR", "RGBA", "GRAY", "NV12", "I420".
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.
            priority: "interactive" or "bulk"; None for the client's.
            caller_key: Key that assigns the call in a traffic split; None for the client's.
            metadata: Metadata of this call, in addition to the client's.
            request_id: ID of the call in the server's log and in its result or error: 1 to 128 of
                A-Z a-z 0-9 . _ : / + = -; None for a generated one.

        Raises:
            InvalidImageError: The image cannot be decoded, or exceeds a limit.
            TypeError: The image is of a type that is not supported.
            OSError: The image's file cannot be read.
            Resnet50Error: The call failed; see `resnet50_client.errors` for the subclasses.
            RuntimeError: The client is closed.
        """
        connection = self._with(variant, priority, caller_key, metadata, request_id)
        options = _codec.classify_options(
            connection.variant, top_k, min_probability, include_embedding, background
        )
        call = self._calls.prepare(_unary.classify_call, image, pixel_format, options)
        return self._call(call, timeout_s, connection)

    def embed(
        self,
        image: ImageInput,
        *,
        variant: str | None = None,
        l2_normalize: bool = False,
        dtype: Dtype = "float32",
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Embedding:
        """Compute an image's embedding.

        Args:
            image: A path, bytes, a binary file, a PIL image, a numpy array or a torch tensor; see
                `ImageInput`.
            variant: Name of the variant; None for the client's default variant, or the server's.
            l2_normalize: Scale the vector to length 1, so that dot products are cosines.
            dtype: "float32", or "float16" for half the bytes and about 3 significant digits.
            background: Background of transparent pixels: "white", "black", "#rrggbb", or "none" to
                drop alpha; None for the variant's.
            pixel_format: Layout of an array: "RGB", "BGR", "RGBA", "GRAY", "NV12", "I420".
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.
            priority: "interactive" or "bulk"; None for the client's.
            caller_key: Key that assigns the call in a traffic split; None for the client's.
            metadata: Metadata of this call, in addition to the client's.
            request_id: ID of the call in the server's log and in its result or error: 1 to 128 of
                A-Z a-z 0-9 . _ : / + = -; None for a generated one.

        Raises:
            InvalidImageError: The image cannot be decoded, or exceeds a limit.
            TypeError: The image is of a type that is not supported.
            OSError: The image's file cannot be read.
            Resnet50Error: The call failed; see `resnet50_client.errors` for the subclasses.
            RuntimeError: The client is closed.
        """
        connection = self._with(variant, priority, caller_key, metadata, request_id)
        options = _codec.embed_options(connection.variant, l2_normalize, dtype, background)
        call = self._calls.prepare(_unary.embed_call, image, pixel_format, options)
        return self._call(call, timeout_s, connection)

    def preprocessor(
        self,
        variant: str | None = None,
        *,
        background: str | None = None,
        timeout_s: float | None = None,
    ) -> types.Preprocessor:
        """Return a function that preprocesses images here, rather than on the server.

        It returns the network's input, an image for all calls: fewer bytes than a large photo, and
        nothing to decode for the server. It needs Pillow, the extra `[images]`.

        Args:
            variant: Name of the variant; None for the client's default variant, or the server's.
            background: Background of transparent pixels: "white", "black", "#rrggbb", or "none" to
                drop alpha; None for the variant's.
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.

        Raises:
            ModuleNotFoundError: Pillow is not installed.
            UnimplementedError: The server is of a release that takes no preprocessed images.
            InvalidRequestError: `background` is invalid, or the variant is preprocessed by a method
                that this release of the SDK does not have.
            Resnet50Error: The call failed; see `resnet50_client.errors` for the subclasses.
        """
        described = self.get_variant(variant, timeout_s=timeout_s)
        from .preprocess import Preprocessor

        return Preprocessor(described, background=background)

    def classify_stream(
        self,
        frames: Iterable[ImageInput],
        *,
        delivery: Delivery = "ordered",
        variant: str | None = None,
        top_k: int | None = None,
        min_probability: float | None = None,
        include_embedding: bool = False,
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        window: int = DEFAULT_WINDOW,
        resume_s: float | None = None,
        idle_timeout_s: float | None = None,
        frame_timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Stream[Classification]:
        """Classify frames over one stream; each frame gets exactly one answer.

        Frames are read one at a time, and only while fewer than `window` are pending. An invalid
        frame is answered with its error, and the stream continues. If a server becomes unreachable,
        pending frames are resent to the next reachable one; a frame that was pending at four broken
        connections is answered with UnavailableError. When the stream ends, `frames` is closed if
        it is a generator or returns a closable iterator.

        The stream that is returned is an iterator and a context manager, which closes it; it can be
        cancelled from another thread.

        Args:
            frames: Images as for `classify`, e.g. of a camera; may be endless.
            delivery: "ordered": every frame is computed, answers are in order, and a faster source
                is slowed down (backpressure). "latest": a newer frame replaces a pending one, which
                is answered as dropped; answers are in order of completion.
            variant: Name of the variant; None for the client's default variant, or the server's.
            top_k: Number of categories; None for 5, or all if the variant has fewer.
            min_probability: Omit categories below this, 0 to 1. Default: those below their
                threshold, if the variant has thresholds.
            include_embedding: Also return the embedding; it needs no second forward pass.
            background: Background of transparent pixels: "white", "black", "#rrggbb", or "none" to
                drop alpha; None for the variant's.
            pixel_format: Layout of arrays: "RGB", "BGR", "RGBA", "GRAY", "NV12", "I420".
            window: Maximum number of pending frames; the server has a limit of its own.
            resume_s: Seconds to retry without an answer from any server, from the first failure;
                None for the client's `timeout_s`, 0 for no retries.
            idle_timeout_s: Seconds without an answer since a frame was last sent or answered, while
                frames are pending; then the stream is resumed at the next server. None for the
                client's `timeout_s`, `math.inf` for no limit.
            frame_timeout_s: Timeout of each frame in seconds, from when it is read from the source;
                it is then answered with DeadlineExceededError, and the stream continues. None for
                no limit.
            priority: "interactive" or "bulk"; None for the client's.
            caller_key: Key that assigns the whole stream in a traffic split; None for the client's.
            metadata: Metadata of this call, in addition to the client's.
            request_id: ID of the call in the server's log, and in its results and errors: 1 to 128
                of A-Z a-z 0-9 . _ : / + = -; None for a generated one.

        Raises:
            TypeError: A single image was passed instead of an iterable.
            InvalidRequestError: An argument is invalid.
            RuntimeError: The client is closed.
            Resnet50Error: Of the iteration: the stream failed; see `resnet50_client.errors` for the
                subclasses.
        """
        check_images("frames", frames, pixel_format, asynchronous=False)
        connection = self._with(variant, priority, caller_key, metadata, request_id)
        kind = _codec.classify_stream(
            delivery,
            connection.variant,
            top_k,
            min_probability,
            include_embedding,
            background,
            pixel_format,
            window,
        )
        limits = connection.stream_limits(window, resume_s, idle_timeout_s, frame_timeout_s)
        return self._stream(connection, kind, frames, limits)

    def embed_stream(
        self,
        frames: Iterable[ImageInput],
        *,
        delivery: Delivery = "ordered",
        variant: str | None = None,
        l2_normalize: bool = False,
        dtype: Dtype = "float32",
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        window: int = DEFAULT_WINDOW,
        resume_s: float | None = None,
        idle_timeout_s: float | None = None,
        frame_timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Stream[Embedding]:
        """Compute embeddings of frames over one stream; otherwise as `classify_stream`.

        Args:
            frames: Images as for `embed`, e.g. of a camera; may be endless.
            delivery: "ordered": every frame is computed, answers are in order, and a faster source
                is slowed down (backpressure). "latest": a newer frame replaces a pending one, which
                is answered as dropped; answers are in order of completion.
            variant: Name of the variant; None for the client's default variant, or the server's.
            l2_normalize: Scale vectors to length 1, so that dot products are cosines.
            dtype: "float32", or "float16" for half the bytes and about 3 significant digits.
            background: Background of transparent pixels: "white", "black", "#rrggbb", or "none" to
                drop alpha; None for the variant's.
            pixel_format: Layout of arrays: "RGB", "BGR", "RGBA", "GRAY", "NV12", "I420".
            window: Maximum number of pending frames; the server has a limit of its own.
            resume_s: Seconds to retry without an answer from any server, from the first failure;
                None for the client's `timeout_s`, 0 for no retries.
            idle_timeout_s: Seconds without an answer since a frame was last sent or answered, while
                frames are pending; then the stream is resumed at the next server. None for the
                client's `timeout_s`, `math.inf` for no limit.
            frame_timeout_s: Timeout of each frame in seconds, from when it is read from the source;
                it is then answered with DeadlineExceededError, and the stream continues. None for
                no limit.
            priority: "interactive" or "bulk"; None for the client's.
            caller_key: Key that assigns the whole stream in a traffic split; None for the client's.
            metadata: Metadata of this call, in addition to the client's.
            request_id: ID of the call in the server's log, and in its results and errors: 1 to 128
                of A-Z a-z 0-9 . _ : / + = -; None for a generated one.

        Raises:
            TypeError: A single image was passed instead of an iterable.
            InvalidRequestError: An argument is invalid.
            RuntimeError: The client is closed.
            Resnet50Error: Of the iteration: the stream failed; see `resnet50_client.errors` for the
                subclasses.
        """
        check_images("frames", frames, pixel_format, asynchronous=False)
        connection = self._with(variant, priority, caller_key, metadata, request_id)
        kind = _codec.embed_stream(
            delivery,
            connection.variant,
            l2_normalize,
            dtype,
            background,
            pixel_format,
            window,
        )
        limits = connection.stream_limits(window, resume_s, idle_timeout_s, frame_timeout_s)
        return self._stream(connection, kind, frames, limits)

    def _stream(
        self,
        connection: Connection,
        kind: StreamKind[Result],
        images: Iterable[ImageInput],
        limits: StreamLimits,
    ) -> Stream[Result]:
        name = _unary.full_name(kind.method)
        observation = self._observers.observe(name, connection.request_id)
        return Stream(self._calls, connection, observation, kind, images, limits)
