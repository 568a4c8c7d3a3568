"""Images of a bulk call: as they are read, sent and answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from ._arguments import check_count, check_flag, check_seconds
from ._pil import is_pil_image
from ._preprocessed import ImageContent
from ._retries import RetryPolicy
from ._status import ended_by_peer
from ._unary import SingleCall
from .errors import DeadlineExceededError, Resnet50Error, UnavailableError
from .images import ImageInput, content_bytes, read_image

Result = TypeVar("Result")
# Error of one image: it cannot be read, was rejected, or got no result in time.
ImageError: TypeAlias = Resnet50Error | OSError | TypeError


@dataclass(eq=False)
class BulkImage:
    """An image of a bulk call.

    Attributes:
        index: Its position in the source, from 0.
        key: Its key if the source is keyed, else None.
        source: The object in the source, e.g. a path.
        content: The part that is sent: an encoded file, or raw pixels; None once it is answered.
        send_by: When it is sent, by the clock, even if its batch is not complete.
        deadline: When its time is over, by the clock, from when it is first sent; None before.
        breaks: Number of connections that broke while it was in flight.
        breaks_alone: Number of those during which no other image was in flight.
        tries: Number of other failed attempts.
        last_error: Error of the last failed attempt.
        failed_alone: True if that was about this image, rather than about its call.
        source_bytes: Size of the source in memory, if it contains pixels or a file's content.
    """

    index: int
    key: Any
    source: Any
    content: ImageContent | None
    send_by: float
    deadline: float | None = None
    breaks: int = 0
    breaks_alone: int = 0
    tries: int = 0
    last_error: Resnet50Error | None = None
    failed_alone: bool = False
    source_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        # Now: the source may be gone when the next image is taken.
        self.source_bytes = _source_bytes(self.source)

    @property
    def content_bytes(self) -> int:
        """Size of the content in bytes."""
        if self.content is None:
            return 0
        return len(content_bytes(self.content))

    @property
    def bytes(self) -> int:
        """Size in memory, of the content and of the source if that holds pixels, too."""
        if self.content is self.source:
            return self.content_bytes
        return self.content_bytes + self.source_bytes


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """The outcome of one image.

    Attributes:
        index: Its position in the source.
        key: Its key; None without keys.
        source: The object in the source.
        result: The result, or None.
        error: The error, or None.
        bytes: Size in memory until it is taken.
    """

    index: int
    key: Any
    source: Any
    result: Result | None
    error: Exception | None
    bytes: int

    def item(self, keyed: bool, return_exceptions: bool) -> Any:
        """Return the result, with its key if wanted.

        Raises:
            Exception: The image's error, unless it is to be returned.
        """
        if self.error is not None and not return_exceptions:
            raise self.error
        item = self.result if self.error is None else self.error
        return (self.key, item) if keyed else item


# The call of several images, or of one: a list of their results.
BulkCall: TypeAlias = SingleCall[list[Result | Resnet50Error]]


@dataclass(frozen=True)
class BatchKind(Generic[Result]):
    """The calls of a bulk run: with one image, and with several.

    Attributes:
        batch: Returns the call of several images, whose result has an entry for each.
        single: Returns the call of one image, given its content and source; an upload if large.
        pixel_format: Layout of images that are arrays.
    """

    batch: Callable[[Sequence[ImageContent]], BulkCall[Result]]
    single: Callable[[ImageContent, Any], SingleCall[Result]]
    pixel_format: str | None

    def read(self, image: ImageInput) -> ImageContent | ImageError:
        """Return the part of an image that is sent, or its error; may block."""
        try:
            return read_image(image, self.pixel_format)
        except (Resnet50Error, OSError, TypeError) as error:
            return error

    def call(self, images: Sequence[BulkImage]) -> BulkCall[Result]:
        """Build the call of these images; large ones are copied and hashed."""
        contents = [image.content for image in images if image.content is not None]
        if len(contents) > 1:
            return self.batch(contents)
        single = self.single(contents[0], images[0].source)
        return SingleCall(
            single.method,
            single.start,
            single.length,
            lambda reply: [single.read(reply)],
        )


@dataclass(frozen=True)
class BulkLimits:
    """Limits of a bulk run.

    Attributes:
        timeout_s: Timeout of each image in seconds, from when it is first sent.
        retry: Policy of retries; overload is retried until the timeout.
        ordered: Outcomes are in the order of the images; else as they complete.
        max_in_flight: Maximum number of images in flight; None for flow control's.

    Raises:
        InvalidRequestError: A value is out of range.
    """

    timeout_s: float
    retry: RetryPolicy
    ordered: bool = True
    max_in_flight: int | None = None

    def __post_init__(self) -> None:
        check_seconds("timeout_s", self.timeout_s)
        check_flag("ordered", self.ordered)
        if self.max_in_flight is not None:
            rule = "1 or more, or None for as many as the servers keep up with"
            check_count("max_in_flight", self.max_in_flight, 1, rule)


@dataclass(eq=False)
class BatchCall:
    """A call to make.

    Attributes:
        images: Its images, at least one.
        timeout_s: Timeout in seconds; `math.inf` for none.
        started: Time when it was handed out to be sent.
        alone: True if nothing else is in flight, because its images may be a cause of broken
            connections.
    """

    images: list[BulkImage]
    timeout_s: float
    started: float
    alone: bool = False


def _source_bytes(source: Any) -> int:
    """Return the memory of a source that holds pixels or a file's content; 0 for others."""
    if is_pil_image(source):
        return int(source.width * source.height * len(source.getbands()))
    if isinstance(source, (bytes, bytearray)):
        return len(source)
    size = getattr(source, "nbytes", None)  # memoryview, numpy, torch
    if isinstance(size, int):
        return size
    pixels = getattr(source, "pixels", getattr(source, "image", None))  # RawImage, VideoFrame
    size = getattr(pixels, "nbytes", None)
    return size if isinstance(size, int) else 0


def is_broken(error: Resnet50Error, failure: grpc.RpcError) -> bool:
    """Return True if a connection broke during a call, rather than a server ending it."""
    return (
        isinstance(error, UnavailableError) and not error.never_sent and not ended_by_peer(failure)
    )


def broke_connections(image: BulkImage) -> UnavailableError:
    """Return the error of an image that breaks connections."""
    last = image.last_error
    return UnavailableError(
        f"image {image.index}: the connection broke each of {image.breaks} times that it was sent,"
        f" the last time while nothing else was in flight; it may crash servers"
        + (f"; the last error: {last.message}" if last is not None else ""),
        code="UNAVAILABLE",
    )


def late(timeout_s: float) -> DeadlineExceededError:
    """Return the error of an image whose time is over before it was sent again."""
    return DeadlineExceededError(
        f"no response within {timeout_s:g} s (timeout_s); allow more time, or check the server's"
        " load",
        code="DEADLINE_EXCEEDED",
    )
