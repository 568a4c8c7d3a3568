"""Types of results, and of arguments that have a few values or several types."""

from ._auth import Token
from ._channel_config import Compression
from ._config import Priority
from ._frames import Delivery, FrameAnswer, StreamStats
from ._health import HealthStatus
from ._tls import Pem
from ._types.embedding_batch import EmbeddingBatch
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
from .images import ImageInput, PixelFormat

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
