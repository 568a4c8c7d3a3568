"""Observers of a client's calls: metrics, traces, logs of the application."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from .errors import Resnet50Error
from .frames import FrameAnswer
from .results import Timing, VariantRef

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
# What gRPC would refuse, and with it the call.
_KEY = re.compile(r"(?!grpc-)[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(eq=False)
class ObservedCall:
    """A call, as far as it has come; a stream is one call, however often it is resumed.

    Attributes:
        method: Its full name, e.g. "resnet50.v1.InferenceService/Classify".
        servers: The addresses that the client calls, as it was given them.
        metadata: Goes along with each attempt; `CallObserver.call_started` may add ASCII text.
        request_id: Finds the call in the server's log.
        attempts: How often it has been made.
        bytes_sent: Length of the messages of all attempts, in bytes, before compression; an upload
            that is refused early counts in full.
        code: How it ended, by the name of gRPC's code, e.g. "OK"; "CANCELLED" also if a stream was
            left before its end; "" until then.
        error: What the caller of the SDK is given instead of a result.
        duration_s: How long it took, pauses and all attempts included, in seconds; 0 until then.
        timing: Where the time went in the server, and the size of the batch; of single images.
        variant: The weights that answered a single image.
        frames: Of a stream: how many were answered with a result.
        failed_frames: Of a stream: how many were answered with an error.
        dropped_frames: Of a stream: how many a newer one replaced.
        notes: What observers keep with it, by their own keys.
    """

    method: str
    servers: tuple[str, ...]
    metadata: list[tuple[str, str]] = field(default_factory=list)
    request_id: str = ""
    attempts: int = 0
    bytes_sent: int = 0
    code: str = ""
    error: BaseException | None = None
    duration_s: float = 0.0
    timing: Timing | None = None
    variant: VariantRef | None = None
    frames: int = 0
    failed_frames: int = 0
    dropped_frames: int = 0
    notes: dict[object, Any] = field(default_factory=dict)


class CallObserver:
    """Is told of a client's calls; each method does nothing unless it is overridden.

    Methods run where the call does, between its steps: in the caller's thread or on its event loop,
    and several at once if there are several calls. So they must be quick. What they raise is logged
    once and forgotten; it never reaches the call.
    """

    def call_started(self, call: ObservedCall) -> None:
        """See a call that is about to be made, and add to its metadata."""

    def call_retried(self, call: ObservedCall, error: Resnet50Error, pause_s: float) -> None:
        """See that an attempt has failed, and that another follows or a stream is resumed.

        Args:
            call: The call.
            error: Of the attempt.
            pause_s: Until the next one, in seconds.
        """

    def frame_answered(self, call: ObservedCall, answer: FrameAnswer[Any]) -> None:
        """See what became of a frame of a stream: a result, an error, or dropped."""

    def call_ended(self, call: ObservedCall) -> None:
        """See how a call ended."""


class Observers:
    """A client's observers, kept from doing harm.

    Args:
        observers: Who they are.
        servers: As `ObservedCall.servers`.
    """

    def __init__(self, observers: Sequence[CallObserver], servers: tuple[str, ...]) -> None:
        self._observers = tuple(observers)
        self._servers = servers
        self._blamed = False

    def __bool__(self) -> bool:
        return bool(self._observers)

    def observe(self, method: str) -> Observation:
        """Return what a call is made in; `method` is its full name."""
        return Observation(self, ObservedCall(method, self._servers))

    def tell(self, what: str, *arguments: Any) -> None:
        """Call a method of each."""
        for observer in self._observers:
            try:
                getattr(observer, what)(*arguments)
            except Exception as error:
                self.blame(error)

    def blame(self, error: Exception) -> None:
        """Log what one has done wrong; once, since it will again at each call."""
        if not self._blamed:
            self._blamed = True
            log.error("an observer of calls failed; this is said once", exc_info=error)


class Observation:
    """One call and those who watch it; a context around the call.

    Args:
        observers: The observers; none costs next to nothing.
        call: What they see.

    Attributes:
        metadata: What they have added; known inside the context.
    """

    def __init__(self, observers: Observers, call: ObservedCall) -> None:
        self._observers = observers
        self._call = call
        self._started = 0.0
        self.metadata: tuple[tuple[str, str], ...] = ()

    def __enter__(self) -> Observation:
        if self._observers:
            self._started = time.perf_counter()
            self._observers.tell("call_started", self._call)
            self.metadata = self._checked(self._call.metadata)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._observers:
            return
        call = self._call
        call.duration_s = time.perf_counter() - self._started
        call.code, call.error = _code_of(error), error
        if isinstance(error, GeneratorExit):
            call.error = None  # the reader of the answers has stopped
        if isinstance(error, Resnet50Error) and error.request_id:
            call.request_id = error.request_id
        self._observers.tell("call_ended", call)

    def attempt(self, length: Callable[[], int] | None = None) -> None:
        """Note that the call is made, with a request of that many bytes."""
        self._call.attempts += 1
        if self._observers and length is not None:
            self._call.bytes_sent += length()

    def sent(self, request: Any) -> None:
        """Note a message of a stream."""
        if self._observers:
            self._call.bytes_sent += request.ByteSize()

    def retried(self, error: Resnet50Error, pause_s: float) -> None:
        """Note that another attempt follows."""
        if self._observers:
            self._observers.tell("call_retried", self._call, error, pause_s)

    def answered(self, result: Any) -> None:
        """Note the result of a single image; of another call nothing."""
        timing = getattr(result, "timing", None)
        if isinstance(timing, Timing):
            self._call.timing, self._call.variant = timing, result.variant

    def frame_answered(self, answer: FrameAnswer[Any]) -> None:
        """Note what became of a frame."""
        if not self._observers:
            return
        if answer.dropped:
            self._call.dropped_frames += 1
        elif answer.error is not None:
            self._call.failed_frames += 1
        else:
            self._call.frames += 1
        self._observers.tell("frame_answered", self._call, answer)

    def _checked(self, metadata: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Return what gRPC will take, and the request's id."""
        taken: dict[str, str] = {}
        for one in metadata:
            try:
                key, value = one
                if not (_KEY.fullmatch(key) and _VALUE.fullmatch(value)) or key.endswith("-bin"):
                    raise ValueError(f"{key!r}: metadata of observers is lower-case ASCII text")
                taken[key] = value
            except (TypeError, ValueError) as error:
                self._observers.blame(error)
        self._call.request_id = taken.setdefault(REQUEST_ID_KEY, uuid.uuid4().hex)
        return tuple(taken.items())


def _code_of(error: BaseException | None) -> str:
    if error is None:
        return "OK"
    if isinstance(error, Resnet50Error) and error.code:
        return error.code
    if isinstance(error, (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)):
        return "CANCELLED"
    return "UNKNOWN"
