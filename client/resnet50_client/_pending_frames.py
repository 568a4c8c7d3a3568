"""Pending frames of a stream: the state of a stream, without I/O."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from resnet50.v1 import image_pb2, inference_pb2

from ._codec import with_origin
from ._frames import FrameAnswer, FrameError, StreamKind, StreamLimits, StreamStats
from ._retries import MAX_SENDS
from ._status import error_of_status, image_too_long
from .errors import (
    DeadlineExceededError,
    InvalidImageError,
    Resnet50Error,
    ServerError,
    UnavailableError,
)
from .images import ImageInput, to_image

Result = TypeVar("Result")

# After this many broken connections a frame is sent while no other one is in flight, so that the
# next break can only be due to this frame.
ALONE_AFTER = 2
# Longer waits overflow on some systems: after 49 days on Windows.
LONGEST_WAIT_S = 24 * 3600.0
_TOO_LONG = (
    "frames are not sent in chunks: send it as a JPEG, which frames_from_video does by itself, or"
    " preprocessed (client.preprocessor); or use classify and embed, which send chunks"
)


@dataclass
class _Pending:
    """A frame without an answer.

    Attributes:
        frame: The message to send.
        error: Error of reading the image, or of its size; None if the image is valid.
        source: The object that the source gave.
        added: When it was added, by the clock.
        sent: Whether it was sent, on any attempt.
        breaks: Number of connections that broke while it was in flight.
    """

    frame: inference_pb2.Frame
    error: FrameError | None
    source: Any
    added: float
    sent: bool = False
    breaks: int = 0


class PendingFrames(Generic[Result]):
    """The frames of a stream without an answer, in order, at most `window`.

    After a broken connection, `restart` queues them to be resent: each frame gets exactly one
    answer. Responses that violate the protocol are rejected, so that no result is returned for
    another image.

    A frame that is in flight whenever connections break may be their cause, for example an image
    that crashes servers. It is sent at most `MAX_SENDS` times, from the third time on with no other
    frame in flight, and then answered with an error.

    Args:
        kind: RPC, configuration and format of the stream.
        limits: Limits of pending frames.
        clock: Returns the time in seconds.

    Attributes:
        request_id: ID of the call, for results and errors.
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
        self.request_id: str | None = None
        self._frames: dict[int, _Pending] = {}
        self._unsent: collections.deque[int] = collections.deque()
        # Sent on this attempt without a response, in the order of sending; those that timed out
        # are no longer in `_frames`.
        self._in_flight: dict[int, None] = {}
        self._timed_out = 0  # number of those in flight
        self._active_at = 0.0  # when the last frame was sent or the last response received
        self._max_message_bytes = math.inf  # the server's limit, once known
        self._next_id = 0
        self._sent = self._answered = self._failed = self._dropped = self._restarts = 0
        # Sums over the answered frames.
        self._latency_s = self._server_ms = 0.0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def has_room(self) -> bool:
        """True if another frame may be added."""
        return len(self._frames) + self._timed_out < self._limits.window

    @property
    def in_flight(self) -> bool:
        """True if frames were sent on this attempt without a response."""
        return bool(self._in_flight)

    @property
    def unsent(self) -> bool:
        """True if frames remain to be sent on this attempt."""
        return bool(self._unsent)

    def stats(self) -> StreamStats:
        """Return the counts of the frames so far."""
        mean = 1 / self._answered if self._answered else 0.0
        return StreamStats(
            read=self._next_id,
            sent=self._sent,
            answered=self._answered,
            failed=self._failed,
            dropped=self._dropped,
            pending=len(self._frames),
            resumes=self._restarts,
            mean_latency_ms=self._latency_s * mean * 1e3,
            mean_server_ms=self._server_ms * mean,
        )

    def read(self, image: ImageInput) -> image_pb2.Image | FrameError:
        """Read an image; may block, and may run concurrently with other methods."""
        try:
            return to_image(image, self._kind.pixel_format)
        except (Resnet50Error, OSError, TypeError) as error:
            return error

    def add(self, image: image_pb2.Image | FrameError, source: Any = None) -> None:
        """Add the next frame.

        Args:
            image: The image or error that `read` returned.
            source: The object that the source gave; held until the frame is answered.
        """
        frame_id, error = self._next_id, None
        self._next_id += 1
        if isinstance(image, image_pb2.Image):
            frame = inference_pb2.Frame(frame_id=frame_id, image=image)
        else:
            # An empty frame is sent instead: its rejection keeps the error in order.
            frame, error = inference_pb2.Frame(frame_id=frame_id, image=image_pb2.Image()), image
        pending = _Pending(frame, error, source, self._clock())
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
        pending = self._frames[frame_id]
        self._sent += not pending.sent
        pending.sent = True
        return self._kind.request(frame=pending.frame)

    def answer(self, reply: Any) -> FrameAnswer[Result] | None:
        """Convert a response to a frame's answer; None if the frame timed out before.

        Raises:
            ServerError: The response violates the protocol.
        """
        self._check(reply)
        frame_id = reply.frame_id
        del self._in_flight[frame_id]
        self._active_at = self._clock()
        pending = self._frames.get(frame_id)
        if pending is None:
            self._timed_out -= 1
            return None
        if reply.WhichOneof("outcome") == "dropped":
            return self._settle(frame_id, replaced_by=reply.dropped.replaced_by_frame_id)
        if pending.error is not None:
            return self._settle(frame_id, error=pending.error)
        if reply.WhichOneof("outcome") == "error":
            return self._settle(frame_id, error=error_of_status(reply.error))
        try:
            return self._settle(frame_id, result=self._kind.read(reply))
        except ServerError as error:
            return self._settle(frame_id, error=error)

    def expire(self) -> list[FrameAnswer[Result]]:
        """Remove the frames that timed out; return their errors."""
        answers: list[FrameAnswer[Result]] = []
        while self._frames:
            frame_id, pending = next(iter(self._frames.items()))
            if pending.added + self._limits.frame_timeout_s > self._clock():
                break
            if frame_id in self._in_flight:
                self._timed_out += 1
            else:
                self._unsent.remove(frame_id)
            late = DeadlineExceededError(
                f"frame {frame_id}: no response within {self._limits.frame_timeout_s:g} s"
                " (frame_timeout_s)",
                code="DEADLINE_EXCEEDED",
            )
            answers.append(self._settle(frame_id, error=pending.error or late))
        return answers

    def silence(self) -> str | None:
        """Return a description of the server's idle timeout; None if it has not expired."""
        if not self._in_flight or self._clock() < self._active_at + self._limits.idle_timeout_s:
            return None
        return (
            f"no response for {self._limits.idle_timeout_s:g} s (idle_timeout_s) to"
            f" {_frames(len(self._in_flight))}"
        )

    def wait_s(self) -> float | None:
        """Return the seconds until `expire` or `silence` is to be called; None for never."""
        at = math.inf
        if self._frames:
            at = next(iter(self._frames.values())).added + self._limits.frame_timeout_s
        if self._in_flight:
            at = min(at, self._active_at + self._limits.idle_timeout_s)
        return None if math.isinf(at) else min(max(0.0, at - self._clock()), LONGEST_WAIT_S)

    def restart(self, broke: bool = False) -> list[FrameAnswer[Result]]:
        """Start another attempt, on which pending frames are resent.

        Of a "latest" stream only the newest frame is resent, the others are dropped.

        Args:
            broke: True if the connection broke with frames in flight, without a status.

        Returns:
            Answers of the frames that are not resent.
        """
        answers: list[FrameAnswer[Result]] = []
        for frame_id in self._in_flight if broke else ():
            if (pending := self._frames.get(frame_id)) is None:
                continue
            pending.breaks += 1
            if pending.breaks == MAX_SENDS:
                answers.append(self._settle(frame_id, error=pending.error or _broke(frame_id)))
        self._restarts += 1
        self._in_flight.clear()
        self._timed_out = 0
        if self._kind.delivery == "latest" and self._frames:
            newest = max(self._frames)
            for frame_id in [one for one in self._frames if one != newest]:
                answers.append(self._settle(frame_id, replaced_by=newest))
        self._unsent = collections.deque(self._frames)
        return answers

    def refuse_too_long(self, error: Resnet50Error) -> bool:
        """Apply the server's message limit: frames that exceed it get an error.

        gRPC ends the whole stream for such a frame, without naming it.

        Args:
            error: The error that ended the stream.

        Returns:
            True if the stream can resume: it ended for such a frame, which is now replaced.
        """
        if not isinstance(error, InvalidImageError) or error.max_message_bytes is None:
            return False
        self._max_message_bytes = error.max_message_bytes
        refused = [self._refuse_if_too_long(pending) for pending in self._frames.values()]
        return any(refused)

    def _settle(
        self,
        frame_id: int,
        *,
        result: Result | None = None,
        error: FrameError | None = None,
        replaced_by: int | None = None,
    ) -> FrameAnswer[Result]:
        """Remove a frame with its outcome, and return its answer."""
        pending = self._frames.pop(frame_id)
        latency_s = self._clock() - pending.added
        if result is not None:
            with_origin(result, pending.source, self.request_id)
            self._answered += 1
            self._latency_s += latency_s
            self._server_ms += cast("Any", result).timing.total_ms
        elif error is not None:
            if isinstance(error, Resnet50Error):
                error._set_context(source=pending.source, request_id=self.request_id)
            self._failed += 1
        else:
            self._dropped += 1
        return FrameAnswer(frame_id, result, error, replaced_by, pending.source, latency_s)

    def _refuse_if_too_long(self, pending: _Pending) -> bool:
        length = message_bytes(pending.frame)
        if length <= self._max_message_bytes:
            return False
        pending.error = image_too_long(length, int(self._max_message_bytes), _TOO_LONG)
        # An empty frame is sent instead, as for an unreadable image.
        pending.frame = inference_pb2.Frame(
            frame_id=pending.frame.frame_id, image=image_pb2.Image()
        )
        return True

    def unanswered(self, error: Resnet50Error) -> Resnet50Error:
        """Return the stream's final error, with the number of frames without an answer."""
        if self._frames:
            error._complete(f"; {_frames(len(self._frames))} had no answer")
        return error

    def _is_suspect(self) -> bool:
        """Return True if the next frame may be the cause of broken connections."""
        # The oldest pending frame has the most breaks.
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
                f"the server's response to frame {frame_id} has no outcome that this release of the"
                " SDK knows; update it"
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
        " a response; it may crash the server, and is not sent again",
        code="UNAVAILABLE",
    )
