"""Client of the ResNet50 model server.

    from resnet50_client import Client

    with Client("localhost:50051") as client:
        print(client.classify("cat.jpg").top.label)

`AsyncClient` has the same methods for asyncio.
"""

from .aio import AsyncClient
from .client import Client
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
from .frames import FrameAnswer
from .images import ImageInput, RawImage, VideoFrame
from .observer import CallObserver, ObservedCall
from .results import (
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
from .retries import RetryPolicy
from .splits import Comparison, TrafficReport, TrafficShare, TrafficSplit
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
