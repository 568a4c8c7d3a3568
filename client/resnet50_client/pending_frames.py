"""The frames of one stream that wait for their answers: everything about a stream but its I/O."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from resnet50.v1 import image_pb2, inference_pb2

from .errors import (
    DeadlineExceededError,
    InvalidImageError,
    Resnet50Error,
    ServerError,
    UnavailableError,
    error_of_status,
    image_too_long,
)
from .frames import FrameAnswer, FrameError, StreamKind, StreamLimits
from .images import ImageInput, to_image
from .retries import MAX_SENDS

Result = TypeVar("Result")

# A frame under which the connection has broken so often is sent while no other is in flight, so
# that the next break can be blamed on nothing else.
ALONE_AFTER = 2


@dataclass
class _Pending:
    """A frame that has no answer yet.

    Attributes:
        frame: As it is sent.
        error: Why its image could not be read, or is longer than the server takes.
        deadline: When it times out, by the clock.
        breaks: How often the connection has broken while it was sent and unanswered.
    """

    frame: inference_pb2.Frame
    error: FrameError | None
    deadline: float
    breaks: int = 0


class PendingFrames(Generic[Result]):
    """The frames of one stream between caller and answer, in order, never more than `window`.

    After a broken connection, `restart` makes them be sent again: none is lost, and since an answer
    takes its frame out, none is answered twice. An answer that the protocol does not allow is
    refused, so no result is given for another image than its own.

    A frame that is in flight each time when connections break may be what breaks them, as an image
    does that crashes a server. It is sent `MAX_SENDS` times in all, from its third time on with no
    other frame beside it, and then answered with an error in its place.

    Args:
        kind: What the stream asks for.
        limits: How many frames may wait for their answers, and how long.
        clock: Gives the time, in seconds.
    """

    def __init__(
        self,
        kind: StreamKind[Result],
        limits: StreamLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kind = kind
        self._limits = limits
        self._clock = clock
        self._frames: dict[int, _Pending] = {}
        self._unsent: collections.deque[int] = collections.deque()
        # Sent on this attempt and not yet answered by the server, in the order of sending; those
        # that have timed out meanwhile are no longer in `_frames`.
        self._in_flight: dict[int, None] = {}
        self._given_up = 0  # of those in flight
        self._active_at = 0.0  # when a frame was last sent or an answer came
        self._max_message_bytes = math.inf  # once a server has told it
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def has_room(self) -> bool:
        """Whether another frame may be added."""
        return len(self._frames) + self._given_up < self._limits.window

    @property
    def in_flight(self) -> bool:
        """Whether frames have been sent on this attempt that the server has not answered."""
        return bool(self._in_flight)

    @property
    def unsent(self) -> bool:
        """Whether frames are still to be sent on this attempt."""
        return bool(self._unsent)

    def read(self, image: ImageInput) -> image_pb2.Image | FrameError:
        """Read an image; may block, and may run while the other methods do."""
        try:
            return to_image(image, self._kind.pixel_format)
        except (Resnet50Error, OSError, TypeError) as error:
            return error

    def add(self, image: image_pb2.Image | FrameError) -> None:
        """Take the next frame, as `read` made it."""
        frame_id, error = self._next_id, None
        self._next_id += 1
        if isinstance(image, image_pb2.Image):
            frame = inference_pb2.Frame(frame_id=frame_id, image=image)
        else:
            # An empty frame goes in its place: the server's refusal keeps its turn for the error.
            frame, error = inference_pb2.Frame(frame_id=frame_id, image=image_pb2.Image()), image
        pending = _Pending(frame, error, self._clock() + self._limits.frame_timeout_s)
        self._refuse_if_too_long(pending)
        self._frames[frame_id] = pending
        self._unsent.append(frame_id)

    def next_request(self) -> Any | None:
        """Return the next request to send; None if there is none to send now."""
        if not self._unsent or (self._in_flight and self._is_suspect()):
            return None
        frame_id = self._unsent.popleft()
        self._in_flight[frame_id] = None
        self._active_at = self._clock()
        return self._kind.request(frame=self._frames[frame_id].frame)

    def answer(self, reply: Any) -> FrameAnswer[Result] | None:
        """Take the answer to a frame; None if the frame has timed out meanwhile.

        Raises:
            ServerError: It is no answer that may come now.
        """
        self._check(reply)
        frame_id = reply.frame_id
        del self._in_flight[frame_id]
        self._active_at = self._clock()
        pending = self._frames.pop(frame_id, None)
        if pending is None:
            self._given_up -= 1
            return None
        if reply.WhichOneof("outcome") == "dropped":
            return FrameAnswer(frame_id, replaced_by=reply.dropped.replaced_by_frame_id)
        if pending.error is not None:
            return FrameAnswer(frame_id, error=pending.error)
        if reply.WhichOneof("outcome") == "error":
            return FrameAnswer(frame_id, error=error_of_status(reply.error))
        try:
            return FrameAnswer(frame_id, result=self._kind.read(reply))
        except ServerError as error:
            return FrameAnswer(frame_id, error=error)

    def expire(self) -> list[FrameAnswer[Result]]:
        """Give up the frames whose time is over; return their errors."""
        answers: list[FrameAnswer[Result]] = []
        while self._frames:
            frame_id, pending = next(iter(self._frames.items()))
            if pending.deadline > self._clock():
                break
            del self._frames[frame_id]
            if frame_id in self._in_flight:
                self._given_up += 1
            else:
                self._unsent.remove(frame_id)
            late = DeadlineExceededError(
                f"frame {frame_id}: no answer within {self._limits.frame_timeout_s:g} s"
                " (frame_timeout_s)",
                code="DEADLINE_EXCEEDED",
            )
            answers.append(FrameAnswer(frame_id, error=pending.error or late))
        return answers

    def silence(self) -> str | None:
        """Return what to say of a server that has had frames for too long and answered none."""
        if not self._in_flight or self._clock() < self._active_at + self._limits.idle_timeout_s:
            return None
        return (
            f"no answer for {self._limits.idle_timeout_s:g} s (idle_timeout_s) to"
            f" {_frames(len(self._in_flight))}"
        )

    def wait_s(self) -> float | None:
        """Return how long to wait before `expire` or `silence` has news; None for ever."""
        at = math.inf
        if self._frames:
            at = next(iter(self._frames.values())).deadline
        if self._in_flight:
            at = min(at, self._active_at + self._limits.idle_timeout_s)
        return None if math.isinf(at) else max(0.0, at - self._clock())

    def restart(self, broke: bool = False) -> list[FrameAnswer[Result]]:
        """Begin another attempt, on which what is unanswered is sent again.

        Of a "latest" stream only the newest frame is, the others are dropped.

        Args:
            broke: Whether the connection broke under the frames in flight, without a word from the
                server.

        Returns:
            What became of the frames that are not sent again.
        """
        answers: list[FrameAnswer[Result]] = []
        for frame_id in self._in_flight if broke else ():
            if (pending := self._frames.get(frame_id)) is None:
                continue
            pending.breaks += 1
            if pending.breaks == MAX_SENDS:
                del self._frames[frame_id]
                answers.append(FrameAnswer(frame_id, error=pending.error or _broke(frame_id)))
        self._in_flight.clear()
        self._given_up = 0
        if self._kind.delivery == "latest" and self._frames:
            newest = max(self._frames)
            for frame_id in [one for one in self._frames if one != newest]:
                del self._frames[frame_id]
                answers.append(FrameAnswer(frame_id, replaced_by=newest))
        self._unsent = collections.deque(self._frames)
        return answers

    def refuse_too_long(self, error: Resnet50Error) -> bool:
        """Take in a server's limit; frames that are longer get an error, each in its place.

        gRPC ends the whole stream for such a frame, and does not say for which.

        Args:
            error: Why the stream ended.

        Returns:
            Whether the stream can go on: it ended for such a frame, and has it no more.
        """
        if not isinstance(error, InvalidImageError) or error.max_message_bytes is None:
            return False
        self._max_message_bytes = error.max_message_bytes
        refused = [self._refuse_if_too_long(pending) for pending in self._frames.values()]
        return any(refused)

    def _refuse_if_too_long(self, pending: _Pending) -> bool:
        length = message_bytes(pending.frame)
        if length <= self._max_message_bytes:
            return False
        pending.error = image_too_long(length, int(self._max_message_bytes))
        # As of an image that cannot be read, an empty frame goes in its place.
        pending.frame = inference_pb2.Frame(
            frame_id=pending.frame.frame_id, image=image_pb2.Image()
        )
        return True

    def unanswered(self, error: Resnet50Error) -> Resnet50Error:
        """Return the error with which the stream ends; it says how many frames have no answer."""
        if self._frames:
            error._complete(f"; {_frames(len(self._frames))} had no answer")
        return error

    def _is_suspect(self) -> bool:
        """Return whether the frame that is due next may be what breaks connections."""
        # Of all that are pending the oldest has seen the most breaks.
        oldest = next(iter(self._frames.values()))
        return oldest.breaks >= ALONE_AFTER

    def _check(self, reply: Any) -> None:
        frame_id, ordered = reply.frame_id, self._kind.delivery == "ordered"
        if frame_id not in self._in_flight:
            known = "already has its answer" if frame_id < self._next_id else "was never sent"
            raise ServerError(f"the server answered frame {frame_id}, which {known}")
        if ordered and frame_id != (due := next(iter(self._in_flight))):
            raise ServerError(
                f"the server answered frame {frame_id} of an ordered stream before frame {due}"
            )
        outcome = reply.WhichOneof("outcome")
        if outcome is None:
            raise ServerError(
                f"the server's answer to frame {frame_id} holds nothing that this release of the"
                " SDK can read; update it"
            )
        if outcome != "dropped":
            return
        if ordered:
            raise ServerError(f"the server dropped frame {frame_id} of an ordered stream")
        newer = reply.dropped.replaced_by_frame_id
        if not frame_id < newer < self._next_id or newer in self._unsent:
            raise ServerError(
                f"the server dropped frame {frame_id} for frame {newer}, which it does not have"
            )


def message_bytes(frame: inference_pb2.Frame) -> int:
    """Return the length of the request that holds a frame, in bytes."""
    length = frame.ByteSize()
    return 1 + (length.bit_length() + 6) // 7 + length  # a tag, the length as a varint, the frame


def _frames(number: int) -> str:
    return "1 frame" if number == 1 else f"{number} frames"


def _broke(frame_id: int) -> UnavailableError:
    return UnavailableError(
        f"frame {frame_id}: was sent {MAX_SENDS} times, and each time the connection broke before"
        " its answer; it may be what stops the server, and is not sent again",
        code="UNAVAILABLE",
    )
