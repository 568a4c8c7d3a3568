"""Frames of a stream: answers, configuration and limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from resnet50.v1 import inference_pb2

from ._arguments import check_seconds
from ._types.record import Record
from .errors import Resnet50Error

Result = TypeVar("Result")
Delivery: TypeAlias = Literal["ordered", "latest"]
"""Handling of frames that arrive faster than they are answered; see `classify_stream`."""
# Error of one frame: its image cannot be read, or the server rejected it.
FrameError: TypeAlias = Resnet50Error | OSError | TypeError
DELIVERIES = {
    "ordered": inference_pb2.DELIVERY_ORDERED,
    "latest": inference_pb2.DELIVERY_LATEST,
}
DEFAULT_WINDOW = 32


@dataclass(frozen=True)
class FrameAnswer(Record, Generic[Result]):
    """Outcome of one frame: one of `result`, `error` and `replaced_by` is set.

    Attributes:
        frame_id: Position among the frames of the source, from 0.
        result: The result.
        error: The error: the frame was unreadable or rejected, timed out (`frame_timeout_s`), or
            was pending at each of several broken connections.
        replaced_by: `frame_id` of the newer frame that replaced it (delivery "latest").
        source: The object that the frames' iterable gave, e.g. a path or a `VideoFrame`.
        latency_s: Seconds from when the frame was read from its source to this answer.
    """

    frame_id: int
    result: Result | None = None
    error: FrameError | None = None
    replaced_by: int | None = None
    source: Any = field(default=None, compare=False)
    latency_s: float = field(default=0.0, compare=False)

    @property
    def dropped(self) -> bool:
        """True if a newer frame replaced it."""
        return self.replaced_by is not None

    def __repr__(self) -> str:
        if self.dropped:
            return f"FrameAnswer({self.frame_id}: replaced by {self.replaced_by})"
        return f"FrameAnswer({self.frame_id}: {(self.error or self.result)!r})"


@dataclass(frozen=True)
class StreamStats(Record):
    """Counts of a stream's frames so far; `read` is the sum of the four outcomes.

    Attributes:
        read: Frames read from the source.
        sent: Frames sent to a server; one that is resent counts once.
        answered: Frames with a result.
        failed: Frames with an error.
        dropped: Frames that were replaced by newer ones.
        pending: Frames without an outcome, sent or not.
        resumes: Number of times that the stream was resumed, at the same or at another server.
        mean_latency_ms: Mean time of the answered frames from their source to their result, in
            milliseconds; 0 if there are none.
        mean_server_ms: Mean time of the answered frames in the server (`Timing.total_ms`).
    """

    read: int = 0
    sent: int = 0
    answered: int = 0
    failed: int = 0
    dropped: int = 0
    pending: int = 0
    resumes: int = 0
    mean_latency_ms: float = 0.0
    mean_server_ms: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.answered} answered, {self.failed} failed, {self.dropped} dropped,"
            f" {self.pending} pending, {self.resumes} resumes"
        )


@dataclass(frozen=True, eq=False, repr=False)
class StreamKind(Generic[Result]):
    """RPC, configuration and format of a stream.

    Attributes:
        method: Name of the RPC.
        request: Class of its requests.
        config: Configuration, sent as the first request.
        read: Converts a response to a result.
        delivery: "ordered" or "latest".
        pixel_format: Layout of frames that are arrays.
    """

    method: str
    request: Callable[..., Any]
    config: Any
    read: Callable[[Any], Result]
    delivery: Delivery
    pixel_format: str | None


@dataclass(frozen=True, eq=False, repr=False)
class StreamLimits:
    """Limits of a stream's pending frames.

    Attributes:
        window: Maximum number of pending frames.
        resume_s: Seconds to retry without an answer from any server; 0 for no retries.
        idle_timeout_s: Seconds without an answer since a frame was last sent or answered, while
            frames are pending.
        frame_timeout_s: Timeout of each frame in seconds.

    Raises:
        InvalidRequestError: A time is out of range; `window` is checked with the options.
    """

    window: int = DEFAULT_WINDOW
    resume_s: float = math.inf
    idle_timeout_s: float = math.inf
    frame_timeout_s: float = math.inf

    def __post_init__(self) -> None:
        check_seconds("resume_s", self.resume_s, zero=True)
        check_seconds("idle_timeout_s", self.idle_timeout_s)
        check_seconds("frame_timeout_s", self.frame_timeout_s)
