"""Client of the ResNet50 model server.

    from resnet50_client import Client

    with Client("localhost:50051") as client:
        print(client.classify("cat.jpg").top.label)

`AsyncClient` has the same methods for asyncio.
"""

from ._async_client import AsyncClient
from ._client import Client
from ._frames import FrameAnswer
from ._retries import RetryPolicy
from ._types.results import (
    BatchLatency,
    Category,
    Classification,
    Embedding,
    LoadedVariant,
    Loading,
    NewDefault,
    PublishedAccuracy,
    Quantization,
    Timing,
    Transform,
    Variant,
    VariantRef,
)
from ._types.traffic import Comparison, TrafficReport, TrafficShare, TrafficSplit
from .errors import (
    CallCancelledError,
    DataLossError,
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    NoClassificationHeadError,
    OverloadedError,
    PermissionDeniedError,
    Resnet50Error,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    VariantChangeError,
    VariantNotFoundError,
)
from .images import ImageInput, RawImage, VideoFrame
from .observers import CallObserver, ObservedCall
from .video import SourceLostError, frames_from_video

__all__ = [
    # Clients
    "AsyncClient",
    "CallObserver",
    "Client",
    "ImageInput",
    "ObservedCall",
    "RawImage",
    "RetryPolicy",
    "frames_from_video",
    # Results
    "BatchLatency",
    "Category",
    "Classification",
    "Comparison",
    "Embedding",
    "FrameAnswer",
    "LoadedVariant",
    "Loading",
    "NewDefault",
    "PublishedAccuracy",
    "Quantization",
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
    "DataLossError",
    "DeadlineExceededError",
    "InvalidImageError",
    "InvalidRequestError",
    "OverloadedError",
    "PermissionDeniedError",
    "Resnet50Error",
    "ServerError",
    "SourceLostError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "VariantChangeError",
    "NoClassificationHeadError",
    "VariantNotFoundError",
]
