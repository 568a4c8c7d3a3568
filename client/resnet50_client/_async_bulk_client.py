"""Bulk calls of the asyncio client: many images, in batches."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from . import _codec, types
from ._arguments import check_flag, check_images
from ._async_base_client import AsyncBaseClient
from ._config import Connection, Priority
from ._types.results import Classification, Dtype, Embedding
from .images import AsyncImageInput, PixelFormat

if TYPE_CHECKING:
    from ._bulk_images import BatchKind, BulkLimits, Outcome

Key = TypeVar("Key")
Item = TypeVar("Item")


class AsyncBulkClient(AsyncBaseClient):
    """Methods for many images. They share calls: a server computes up to 32 images of a message.

    Several calls are in flight, balanced over all servers and connections: more while they are
    answered soon, fewer when a server is overloaded. An image is sent again, within its timeout, if
    no server is reachable, or a server is overloaded or restarts. Memory is bounded: 64 MiB of
    images and results, those in flight once more in gRPC, and images that are being read.
    """

    @overload
    def classify_many(
        self,
        images: Iterable[AsyncImageInput] | AsyncIterable[AsyncImageInput],
        *,
        variant: str | None = None,
        top_k: int | None = None,
        min_probability: float | None = None,
        include_embedding: bool = False,
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        keyed: Literal[False] = False,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[Classification]: ...

    @overload
    def classify_many(
        self,
        images: Iterable[AsyncImageInput] | AsyncIterable[AsyncImageInput],
        *,
        variant: str | None = None,
        top_k: int | None = None,
        min_probability: float | None = None,
        include_embedding: bool = False,
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: Literal[True],
        keyed: Literal[False] = False,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[Classification | Exception]: ...

    @overload
    def classify_many(
        self,
        images: Iterable[tuple[Key, AsyncImageInput]]
        | Mapping[Key, AsyncImageInput]
        | AsyncIterable[tuple[Key, AsyncImageInput]],
        *,
        variant: str | None = None,
        top_k: int | None = None,
        min_probability: float | None = None,
        include_embedding: bool = False,
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        keyed: Literal[True],
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[tuple[Key, Classification]]: ...

    @overload
    def classify_many(
        self,
        images: Iterable[tuple[Key, AsyncImageInput]]
        | Mapping[Key, AsyncImageInput]
        | AsyncIterable[tuple[Key, AsyncImageInput]],
        *,
        variant: str | None = None,
        top_k: int | None = None,
        min_probability: float | None = None,
        include_embedding: bool = False,
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: Literal[True],
        keyed: Literal[True],
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[tuple[Key, Classification | Exception]]: ...

    def classify_many(
        self,
        images: Iterable[Any] | AsyncIterable[Any],
        *,
        variant: str | None = None,
        top_k: int | None = None,
        min_probability: float | None = None,
        include_embedding: bool = False,
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        keyed: bool = False,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[Any]:
        """Classify many images, several in a call.

        Args:
            images: Images as for `classify`, in any number; read ahead by one window, the files of
                a list by four threads. Closed at the end if it is a generator.
            variant: Name of the variant; None for the client's default variant, or the server's.
            top_k: Number of categories; None for 5, or all if the variant has fewer.
            min_probability: Omit categories below this, 0 to 1. Default: those below their
                threshold, if the variant has thresholds.
            include_embedding: Also return the embedding; it needs no second forward pass.
            background: Background of transparent pixels: "white", "black", "#rrggbb", or "none" to
                drop alpha; None for the variant's.
            pixel_format: Layout of arrays: "RGB", "BGR", "RGBA", "GRAY", "NV12", "I420".
            ordered: Results are in the order of the images. False: as they complete, so that a slow
                image holds up no other.
            return_exceptions: Return the error of an image in its place. False: raise the first
                one, and cancel the rest. Errors of all images are raised either way: no server
                reachable for `timeout_s`, an unknown variant, no permission.
            keyed: `images` are pairs (key, image), or a mapping of keys to images; results are
                pairs (key, result).
            timeout_s: Timeout of each image in seconds, from when it is first sent, with all
                attempts; None for the client's, `math.inf` for no limit.
            priority: "interactive" or "bulk"; None for the client's.
            caller_key: Key that assigns the calls in a traffic split; None for the client's.
            metadata: Metadata of the calls, in addition to the client's.
            max_in_flight: Maximum number of images in flight; None for as many as the servers keep
                up with.

        Raises:
            TypeError: A single image was passed instead of an iterable, or a mapping without
                `keyed`.
            Resnet50Error: The run failed; see `resnet50_client.errors` for the subclasses.
        """
        from . import _batch_kinds  # here, as single calls do not need them
        from ._bulk_images import Outcome

        connection = self._with(variant, priority, caller_key, metadata, None)
        options = _codec.classify_options(
            connection.variant, top_k, min_probability, include_embedding, background
        )
        kind = _batch_kinds.classify_batches(options, pixel_format)
        check_flag("return_exceptions", return_exceptions)
        limits = connection.bulk_limits(timeout_s, ordered, max_in_flight)
        item = partial(Outcome[Any].item, keyed=keyed, return_exceptions=return_exceptions)
        return self._results(connection, kind, images, limits, keyed, item)

    @overload
    def embed_many(
        self,
        images: Iterable[AsyncImageInput] | AsyncIterable[AsyncImageInput],
        *,
        variant: str | None = None,
        l2_normalize: bool = False,
        dtype: Dtype = "float32",
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        keyed: Literal[False] = False,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[Embedding]: ...

    @overload
    def embed_many(
        self,
        images: Iterable[AsyncImageInput] | AsyncIterable[AsyncImageInput],
        *,
        variant: str | None = None,
        l2_normalize: bool = False,
        dtype: Dtype = "float32",
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: Literal[True],
        keyed: Literal[False] = False,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[Embedding | Exception]: ...

    @overload
    def embed_many(
        self,
        images: Iterable[tuple[Key, AsyncImageInput]]
        | Mapping[Key, AsyncImageInput]
        | AsyncIterable[tuple[Key, AsyncImageInput]],
        *,
        variant: str | None = None,
        l2_normalize: bool = False,
        dtype: Dtype = "float32",
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        keyed: Literal[True],
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[tuple[Key, Embedding]]: ...

    @overload
    def embed_many(
        self,
        images: Iterable[tuple[Key, AsyncImageInput]]
        | Mapping[Key, AsyncImageInput]
        | AsyncIterable[tuple[Key, AsyncImageInput]],
        *,
        variant: str | None = None,
        l2_normalize: bool = False,
        dtype: Dtype = "float32",
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: Literal[True],
        keyed: Literal[True],
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[tuple[Key, Embedding | Exception]]: ...

    def embed_many(
        self,
        images: Iterable[Any] | AsyncIterable[Any],
        *,
        variant: str | None = None,
        l2_normalize: bool = False,
        dtype: Dtype = "float32",
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        keyed: bool = False,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.AsyncBulkResults[Any]:
        """Compute embeddings of many images, several in a call.

        Args:
            images: Images as for `classify`, in any number; read ahead by one window, the files of
                a list by four threads. Closed at the end if it is a generator.
            variant: Name of the variant; None for the client's default variant, or the server's.
            l2_normalize: Scale vectors to length 1, so that dot products are cosines.
            dtype: "float32", or "float16" for half the bytes and about 3 significant digits.
            background: Background of transparent pixels: "white", "black", "#rrggbb", or "none" to
                drop alpha; None for the variant's.
            pixel_format: Layout of arrays: "RGB", "BGR", "RGBA", "GRAY", "NV12", "I420".
            ordered: Results are in the order of the images. False: as they complete, so that a slow
                image holds up no other.
            return_exceptions: Return the error of an image in its place. False: raise the first
                one, and cancel the rest. Errors of all images are raised either way: no server
                reachable for `timeout_s`, an unknown variant, no permission.
            keyed: `images` are pairs (key, image), or a mapping of keys to images; results are
                pairs (key, result).
            timeout_s: Timeout of each image in seconds, from when it is first sent, with all
                attempts; None for the client's, `math.inf` for no limit.
            priority: "interactive" or "bulk"; None for the client's.
            caller_key: Key that assigns the calls in a traffic split; None for the client's.
            metadata: Metadata of the calls, in addition to the client's.
            max_in_flight: Maximum number of images in flight; None for as many as the servers keep
                up with.

        Raises:
            TypeError: A single image was passed instead of an iterable, or a mapping without
                `keyed`.
            Resnet50Error: The run failed; see `resnet50_client.errors` for the subclasses.
        """
        from . import _batch_kinds
        from ._bulk_images import Outcome

        connection = self._with(variant, priority, caller_key, metadata, None)
        options = _codec.embed_options(connection.variant, l2_normalize, dtype, background)
        kind = _batch_kinds.embed_batches(options, pixel_format)
        check_flag("return_exceptions", return_exceptions)
        limits = connection.bulk_limits(timeout_s, ordered, max_in_flight)
        item = partial(Outcome[Any].item, keyed=keyed, return_exceptions=return_exceptions)
        return self._results(connection, kind, images, limits, keyed, item)

    async def embed_batch(
        self,
        images: Iterable[AsyncImageInput] | AsyncIterable[AsyncImageInput],
        *,
        variant: str | None = None,
        l2_normalize: bool = False,
        background: str | None = None,
        pixel_format: PixelFormat | None = None,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
    ) -> types.EmbeddingBatch:
        """Compute the embeddings of images as one matrix.

        Args:
            images: Images as for `classify`; each takes 8 KiB of the matrix.
            variant: Name of the variant; None for the client's default variant, or the server's.
            l2_normalize: Scale vectors to length 1, so that dot products are cosines.
            background: Background of transparent pixels: "white", "black", "#rrggbb", or "none" to
                drop alpha; None for the variant's.
            pixel_format: Layout of arrays: "RGB", "BGR", "RGBA", "GRAY", "NV12", "I420".
            timeout_s: Timeout of each image in seconds, from when it is first sent, with all
                attempts; None for the client's, `math.inf` for no limit.
            priority: "interactive" or "bulk"; None for the client's.
            caller_key: Key that assigns the calls in a traffic split; None for the client's.
            metadata: Metadata of the calls, in addition to the client's.
            max_in_flight: Maximum number of images in flight; None for as many as the servers keep
                up with.

        Returns:
            Vectors, float32 [N, 2048]: a row for each image, in their order. Rows of failed images
            are NaN, and their errors in `errors`.

        Raises:
            EmbeddingSpaceError: The variant was replaced during the call, so that its vectors are
                not comparable.
            TypeError: A single image was passed instead of an iterable.
            Resnet50Error: All images failed for one reason: no server reachable for `timeout_s`, an
                unknown variant, no permission.
        """
        from . import _batch_kinds
        from ._embedding_rows import EmbeddingRows

        connection = self._with(variant, priority, caller_key, metadata, None)
        options = _codec.embed_options(connection.variant, l2_normalize, "float32", background)
        kind = _batch_kinds.embed_batches(options, pixel_format)
        limits = connection.bulk_limits(timeout_s, False, max_in_flight)
        rows = EmbeddingRows(images, l2_normalize)
        async with self._results(connection, kind, images, limits, False, rows.add) as added:
            async for _ in added:
                pass
        return rows.batch()

    def _results(
        self,
        connection: Connection,
        kind: BatchKind[Any],
        images: Iterable[Any] | AsyncIterable[Any],
        limits: BulkLimits,
        keyed: bool,
        item: Callable[[Outcome[Any]], Item],
    ) -> types.AsyncBulkResults[Item]:
        from ._async_bulk import AsyncBulkResults
        from ._bulk_source import check_keyed

        check_images("images", images, kind.pixel_format, asynchronous=True)
        check_keyed(images, keyed)
        return AsyncBulkResults(
            self._calls, connection, self._observers, kind, images, limits, keyed, item
        )
