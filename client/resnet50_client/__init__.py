"""Client of the ResNet50 model server.

    from resnet50_client import Client

    with Client("localhost:50051") as client:
        print(client.classify("cat.jpg").top.label)

`AsyncClient` has the same methods for asyncio.
"""

from typing import TYPE_CHECKING

from ._client import Client
from ._frames import FrameAnswer, StreamStats
from ._lazy import lazy_names
from ._retries import RetryPolicy
from ._sync_stream import Stream
from ._types.results import Category, Classification, Embedding, Timing, VariantRef
from ._version import __version__
from .errors import (
    CallCancelledError,
    ConflictError,
    DataLossError,
    DeadlineExceededError,
    EmbeddingSpaceError,
    FailedPreconditionError,
    InvalidImageError,
    InvalidRequestError,
    NoClassificationHeadError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    Resnet50Error,
    ServerError,
    TransformMismatchError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    VariantChangeError,
    VariantNotFoundError,
)
from .images import ImageInput, RawImage, VideoFrame
from .observers import CallObserver, ObservedCall

if TYPE_CHECKING:
    from ._async_bulk import AsyncBulkResults
    from ._async_client import AsyncClient
    from ._async_stream import AsyncStream
    from ._preprocessed import PreprocessedImage
    from ._sync_bulk import BulkResults
    from ._types.embedding_batch import EmbeddingBatch
    from ._types.traffic import Comparison, TrafficReport, TrafficShare, TrafficSplit
    from ._types.variants import (
        BatchLatency,
        Loading,
        LoadResult,
        PublishedAccuracy,
        Quantization,
        SetDefaultResult,
        Transform,
        Variant,
    )
    from .video import SourceLostError, frames_from_raw, frames_from_video
else:
    # Many programs need none of these.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "_async_bulk": ("AsyncBulkResults",),
            "_async_client": ("AsyncClient",),
            "_async_stream": ("AsyncStream",),
            "_preprocessed": ("PreprocessedImage",),
            "_sync_bulk": ("BulkResults",),
            "_types.embedding_batch": ("EmbeddingBatch",),
            "_types.traffic": (
                "Comparison",
                "TrafficReport",
                "TrafficShare",
                "TrafficSplit",
            ),
            "_types.variants": (
                "BatchLatency",
                "LoadResult",
                "Loading",
                "PublishedAccuracy",
                "Quantization",
                "SetDefaultResult",
                "Transform",
                "Variant",
            ),
            "video": (
                "SourceLostError",
                "frames_from_raw",
                "frames_from_video",
            ),
        },
    )

__all__ = [
    # Clients
    "AsyncClient",
    "AsyncStream",
    "CallObserver",
    "Client",
    "ImageInput",
    "ObservedCall",
    "PreprocessedImage",
    "RawImage",
    "RetryPolicy",
    "Stream",
    "frames_from_raw",
    "frames_from_video",
    # Results
    "AsyncBulkResults",
    "BatchLatency",
    "BulkResults",
    "Category",
    "Classification",
    "Comparison",
    "Embedding",
    "EmbeddingBatch",
    "FrameAnswer",
    "LoadResult",
    "Loading",
    "PublishedAccuracy",
    "Quantization",
    "SetDefaultResult",
    "StreamStats",
    "Timing",
    "TrafficReport",
    "TrafficShare",
    "TrafficSplit",
    "Transform",
    "Variant",
    "VariantRef",
    "VideoFrame",
    # Errors
    "CallCancelledError",
    "ConflictError",
    "DataLossError",
    "DeadlineExceededError",
    "EmbeddingSpaceError",
    "FailedPreconditionError",
    "InvalidImageError",
    "InvalidRequestError",
    "OverloadedError",
    "PermissionDeniedError",
    "Resnet50Error",
    "ServerError",
    "SourceLostError",
    "TransformMismatchError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "VariantChangeError",
    "NoClassificationHeadError",
    "NotFoundError",
    "VariantNotFoundError",
    "__version__",
]
