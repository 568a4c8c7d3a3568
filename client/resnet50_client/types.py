"""Types of results, and of arguments that have a few values or several types."""

from typing import TYPE_CHECKING

from ._auth import Token
from ._channel_config import Compression
from ._config import Priority
from ._frames import Delivery, FrameAnswer, StreamStats
from ._health import HealthStatus
from ._lazy import lazy_names
from ._tls import Pem
from ._types.record import Record
from ._types.results import (
    CacheUse,
    Category,
    Classification,
    Dtype,
    Embedding,
    Timing,
    VariantRef,
)
from .images import ImageInput, PixelFormat

if TYPE_CHECKING:
    from ._async_bulk import AsyncBulkResults as AsyncBulkResults
    from ._sync_bulk import BulkResults as BulkResults
    from ._types.embedding_batch import EmbeddingBatch
    from ._types.traffic import Comparison, TrafficReport, TrafficShare, TrafficSplit
    from ._types.variants import (
        Activation,
        BatchLatency,
        Loading,
        LoadingStage,
        LoadResult,
        PublishedAccuracy,
        Quantization,
        SetDefaultResult,
        Transform,
        Variant,
        VariantState,
    )
    from .preprocess import Preprocessor as Preprocessor
else:
    # Imported when they are used: a client that only sends images does without.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "_async_bulk": ("AsyncBulkResults",),
            "_sync_bulk": ("BulkResults",),
            "_types.embedding_batch": ("EmbeddingBatch",),
            "_types.traffic": ("Comparison", "TrafficReport", "TrafficShare", "TrafficSplit"),
            "preprocess": ("Preprocessor",),
            "_types.variants": (
                "Activation",
                "BatchLatency",
                "Loading",
                "LoadingStage",
                "LoadResult",
                "PublishedAccuracy",
                "Quantization",
                "SetDefaultResult",
                "Transform",
                "Variant",
                "VariantState",
            ),
        },
    )

__all__ = [
    # Results about images
    "Category",
    "Classification",
    "Embedding",
    "EmbeddingBatch",
    "FrameAnswer",
    "Record",
    "StreamStats",
    "Timing",
    "VariantRef",
    # Results about variants and traffic
    "BatchLatency",
    "Comparison",
    "LoadResult",
    "Loading",
    "PublishedAccuracy",
    "Quantization",
    "SetDefaultResult",
    "TrafficReport",
    "TrafficShare",
    "TrafficSplit",
    "Transform",
    "Variant",
    # Literals
    "Activation",
    "CacheUse",
    "Compression",
    "Delivery",
    "Dtype",
    "HealthStatus",
    "LoadingStage",
    "PixelFormat",
    "Priority",
    "VariantState",
    # Unions
    "ImageInput",
    "Pem",
    "Token",
]
