"""Requests of a stream, and outcomes of its frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from resnet50.v1 import inference_pb2

from .arguments import check_seconds
from .errors import Resnet50Error

Result = TypeVar("Result")
Delivery: TypeAlias = Literal["ordered", "latest"]
Errors: TypeAlias = Literal["return", "raise"]
# A frame's own: its image cannot be read, or the server refused it.
FrameError: TypeAlias = Resnet50Error | OSError | TypeError
DELIVERIES = {
    "ordered": inference_pb2.DELIVERY_ORDERED,
    "latest": inference_pb2.DELIVERY_LATEST,
}
DEFAULT_WINDOW = 32


@dataclass(frozen=True)
class FrameAnswer(Generic[Result]):
    """Outcome of one frame: one of `result`, `error` and `replaced_by` is set.

    Attributes:
        frame_id: Its position among the frames that were given, from 0.
        result: What the server made of it.
        error: Why there is no result: the frame could not be read or was refused, had no answer
            within `frame_timeout_s`, or broke each connection that it was sent over.
        replaced_by: The newer frame that took its place (delivery "latest").
    """

    frame_id: int
    result: Result | None = None
    error: FrameError | None = None
    replaced_by: int | None = None

    @property
    def dropped(self) -> bool:
        """Whether a newer frame took its place."""
        return self.replaced_by is not None

    def outcome(self, errors: Errors) -> Result | Exception:
        """Return an ordered frame's result, or its error; raise that instead if so asked."""
        if self.error is not None:
            if errors == "raise":
                raise self.error
            return self.error
        assert self.result is not None  # a frame of an ordered stream is never dropped
        return self.result

    def __repr__(self) -> str:
        what = f"replaced by {self.replaced_by}" if self.dropped else self.error or self.result
        return f"FrameAnswer({self.frame_id}: {what!r})"


@dataclass(frozen=True)
class StreamKind(Generic[Result]):
    """Kind of a stream: its requests and results.

    Attributes:
        method: The RPC's name.
        request: The class of its requests.
        config: Its first request.
        read: Makes a result out of a reply that holds one.
        delivery: "ordered" or "latest".
        pixel_format: Layout of frames that are arrays.
    """

    method: str
    request: Callable[..., Any]
    config: Any
    read: Callable[[Any], Result]
    delivery: Delivery
    pixel_format: str | None


@dataclass(frozen=True)
class StreamLimits:
    """How much of a stream may be on its way, and for how long.

    Attributes:
        window: How many frames may wait for their answers.
        resume_s: How long to go on without an answer from any server, in seconds; 0: not at all.
        idle_timeout_s: How long a server may have frames and answer none, in seconds.
        frame_timeout_s: How long one frame may wait for its answer, in seconds.

    Raises:
        InvalidRequestError: One of the times is out of range; `window` is checked with the options.
    """

    window: int = DEFAULT_WINDOW
    resume_s: float = math.inf
    idle_timeout_s: float = math.inf
    frame_timeout_s: float = math.inf

    def __post_init__(self) -> None:
        check_seconds("resume_s", self.resume_s, zero=True)
        check_seconds("idle_timeout_s", self.idle_timeout_s)
        check_seconds("frame_timeout_s", self.frame_timeout_s)
