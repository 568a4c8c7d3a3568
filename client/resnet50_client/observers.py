"""Observers of a client's calls, for metrics, traces and logs of the application."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from ._arguments import check_request_id
from ._frames import FrameAnswer
from ._randomness import random_id
from ._status import REQUEST_ID_KEY
from ._types.results import Timing, VariantRef
from .errors import Resnet50Error

log = logging.getLogger(__name__)

# gRPC would reject other metadata, and the call with it.
_KEY = re.compile(r"(?!grpc-)[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(eq=False)
class ObservedCall:
    """State of a call in progress or completed; a stream is one call, even if it is resumed.

    Attributes:
        method: Full name, e.g. "resnet50.v1.InferenceService/Classify".
        servers: The client's server addresses, as given; () if a function returns them.
        metadata: Sent with each attempt; `CallObserver.call_started` may add ASCII text, also an
            "x-request-id" for a call without `request_id`.
        request_id: ID of the call in the server's log.
        attempts: Number of attempts so far.
        bytes_sent: Size of the messages of all attempts in bytes, before compression; an upload
            that is rejected early counts in full.
        code: Name of the final gRPC status code, e.g. "OK"; "CANCELLED" also if a stream was closed
            or cancelled before its end; "" while in progress.
        error: The exception that the call raises.
        duration_s: Duration in seconds, including all attempts and pauses; 0 while in progress.
        timing: The server's times by stage, and the batch size; only of single images.
        variant: The weights that computed the result; only of single images.
        frames: Number of a stream's frames with a result.
        failed_frames: Number of a stream's frames with an error.
        dropped_frames: Number of a stream's frames that were replaced by newer ones.
        notes: Data of observers, by keys of their own.
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
    """Base class of observers, which are notified of a client's calls.

    Methods run synchronously in the call's thread or event loop, for several calls concurrently,
    so they must be fast. Their exceptions are logged once, and never affect the call.
    """

    def call_started(self, call: ObservedCall) -> None:
        """Handle the start of a call; may add to its metadata.

        Args:
            call: The call.
        """

    def call_retried(self, call: ObservedCall, error: Resnet50Error, pause_s: float) -> None:
        """Handle a failed attempt that is retried, or a stream that is resumed.

        Args:
            call: The call.
            error: The attempt's error.
            pause_s: Seconds until the next attempt.
        """

    def frame_answered(self, call: ObservedCall, answer: FrameAnswer[Any]) -> None:
        """Handle the answer to a stream's frame: a result, an error, or dropped.

        Args:
            call: The stream.
            answer: The answer.
        """

    def call_ended(self, call: ObservedCall) -> None:
        """Handle the end of a call.

        Args:
            call: The call.
        """


class Observers:
    """A client's observers; their exceptions are caught.

    Args:
        observers: The observers.
        servers: Value of `ObservedCall.servers`.

    Raises:
        ValueError: The observers are no list of them.
    """

    def __init__(self, observers: Sequence[CallObserver], servers: tuple[str, ...]) -> None:
        if not isinstance(observers, Iterable):  # such as one observer
            raise ValueError(f"observers: is {observers!r}, must be a list")
        self._observers = tuple(observers)
        self._servers = servers
        self._error_logged = False

    def __bool__(self) -> bool:
        return bool(self._observers)

    def observe(self, method: str, request_id: str | None = None) -> Observation:
        """Return a context manager for a call.

        Args:
            method: Full name of the method.
            request_id: ID of the call; None for an observer's, or a generated one.
        """
        return Observation(self, ObservedCall(method, self._servers), request_id)

    def notify(self, event: str, *arguments: Any) -> None:
        """Call a method of each observer."""
        for observer in self._observers:
            try:
                getattr(observer, event)(*arguments)
            except Exception as error:
                self.log_once(error)

    def log_once(self, error: Exception) -> None:
        """Log the first exception of an observer; later ones are probably the same."""
        if not self._error_logged:
            self._error_logged = True
            log.error("an observer of calls failed; logged only once", exc_info=error)


class Observation:
    """Context manager around a call that notifies observers.

    Args:
        observers: The observers; without any there is almost no overhead.
        call: State of the call.
        request_id: ID of the call; None for an observer's, or a generated one.

    Attributes:
        metadata: The request ID, and metadata added by observers; set inside the context.
    """

    def __init__(
        self, observers: Observers, call: ObservedCall, request_id: str | None = None
    ) -> None:
        self._observers = observers
        self._call = call
        self._given_id = request_id
        call.request_id = request_id or random_id()
        self._started = 0.0
        self.metadata: tuple[tuple[str, str], ...] = ()

    def __enter__(self) -> Observation:
        self.start()
        return self

    @property
    def request_id(self) -> str:
        """ID of the call in the server's log."""
        return self._call.request_id

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(error)

    def end(self, error: BaseException | None, *, closed: bool = False) -> None:
        """Record the end of the call; only if no `with` statement does.

        Args:
            error: The exception that the call raises; None for none.
            closed: True if the application closed the stream before its end.
        """
        call = self._call
        if isinstance(error, Resnet50Error):
            # A server that does not accept the ID has one of its own.
            call.request_id = error.request_id = error.request_id or call.request_id
        if not self._observers:
            return
        call.duration_s = time.perf_counter() - self._started
        call.code, call.error = "CANCELLED" if closed else _code_of(error), error
        self._observers.notify("call_ended", call)
        if error is not None:
            self._call = replace(call, error=None)  # whose frames have this observation

    def start(self) -> None:
        """Record the start of the call, and set `metadata`."""
        if self._observers:
            self._started = time.perf_counter()
            self._observers.notify("call_started", self._call)
            self.metadata = self._checked(self._call.metadata)
        self.metadata = (*self.metadata, (REQUEST_ID_KEY, self._call.request_id))

    def attempt(self, length: Callable[[], int] | None = None) -> None:
        """Record an attempt; `length` returns the request's size in bytes."""
        self._call.attempts += 1
        if self._call.attempts > 1:
            log.debug("%s: attempt %d starts", self._call.method, self._call.attempts)
        if self._observers and length is not None:
            self._call.bytes_sent += length()

    def sent(self, request: Any) -> None:
        """Record a stream's request."""
        if self._observers:
            self._call.bytes_sent += request.ByteSize()

    def retried(self, error: Resnet50Error, pause_s: float) -> None:
        """Record that the call is retried."""
        call = self._call
        text = "%s: attempt %d failed, the next one is in %.2f s: %s"
        log.debug(text, call.method, call.attempts, pause_s, error)
        if self._observers:
            self._observers.notify("call_retried", self._call, error, pause_s)

    def answered(self, result: Any) -> None:
        """Record the result of a single image; results of other calls are ignored."""
        timing = getattr(result, "timing", None)
        if isinstance(timing, Timing):
            self._call.timing, self._call.variant = timing, result.variant

    def frame_answered(self, answer: FrameAnswer[Any]) -> None:
        """Record the answer to a frame."""
        if not self._observers:
            return
        if answer.dropped:
            self._call.dropped_frames += 1
        elif answer.error is not None:
            self._call.failed_frames += 1
        else:
            self._call.frames += 1
        self._observers.notify("frame_answered", self._call, answer)

    def _checked(self, metadata: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Return the valid metadata without the request ID, which is taken over unless given."""
        taken: dict[str, str] = {}
        for one in metadata:
            try:
                key, value = one
                if not (_KEY.fullmatch(key) and _VALUE.fullmatch(value)) or key.endswith("-bin"):
                    raise ValueError(f"{key!r}: metadata must be lower-case ASCII text")
                if key == REQUEST_ID_KEY:
                    check_request_id(value)
                taken[key] = value
            except (TypeError, ValueError) as error:
                self._observers.log_once(error)
        observed_id = taken.pop(REQUEST_ID_KEY, None)
        if observed_id is not None and self._given_id is None:
            self._call.request_id = observed_id
        return tuple(taken.items())


def _code_of(error: BaseException | None) -> str:
    if error is None:
        return "OK"
    if isinstance(error, Resnet50Error) and error.code:
        return error.code
    if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)):
        return "CANCELLED"
    return "UNKNOWN"
