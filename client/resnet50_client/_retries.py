"""Retries of failed calls, and resumption of broken streams."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ._arguments import check_count, check_seconds
from ._randomness import with_jitter
from .errors import DeadlineExceededError, OverloadedError, Resnet50Error, UnavailableError

# Shorter pauses would be a busy loop.
SHORTEST_BACKOFF_S = 0.01
# Longer timeouts could overflow gRPC's timers.
LONGEST_S = 365 * 24 * 3600.0
# Maximum number of times a frame is sent if the connection breaks each time.
MAX_SENDS = 4


@dataclass(frozen=True)
class RetryPolicy:
    """Policy for retrying failed calls within their deadlines.

    Inference is idempotent, so retries are safe. Calls that change variants are retried only if no
    connection could be made, so that no server received them, and only within the client's
    `timeout_s`.

    Attributes:
        attempts: Maximum attempts while no server is reachable or the call is lost in transit
            (UNAVAILABLE), each at the next address. None, the default: until the deadline. 1: no
            retries.
        initial_backoff_s: First pause between attempts in seconds, at least 0.01; it doubles each
            time. Pauses have a jitter of 20%, so that clients do not retry simultaneously.
        max_backoff_s: Maximum pause in seconds.
        overload_attempts: Maximum attempts while servers are overloaded (RESOURCE_EXHAUSTED), each
            after the server's retry delay; an error without one, e.g. of a proxy, is not retried.
            1, the default: no retries, because they add load.

    Raises:
        ValueError: A value is out of range.
    """

    attempts: int | None = None
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    overload_attempts: int = 1

    def __post_init__(self) -> None:
        if self.attempts is not None:
            rule = "1 or more, or None for no limit but the deadline"
            check_count("attempts", self.attempts, 1, rule)
        check_count("overload_attempts", self.overload_attempts, 1, "1 or more")
        check_seconds("initial_backoff_s", self.initial_backoff_s, zero=True)
        check_seconds("max_backoff_s", self.max_backoff_s)
        if not SHORTEST_BACKOFF_S <= self.initial_backoff_s <= self.max_backoff_s:
            raise ValueError(
                f"initial_backoff_s: is {self.initial_backoff_s}, must be {SHORTEST_BACKOFF_S} or"
                " more, and at most max_backoff_s"
            )


def backoff_s(retry: RetryPolicy, tries: int) -> float:
    """Return the pause after a number of failed attempts in seconds, with jitter."""
    pause_s = retry.initial_backoff_s * 2.0 ** min(tries - 1, 30)
    return with_jitter(min(pause_s, retry.max_backoff_s))


class Backoff:
    """Exponential backoff between attempts.

    Args:
        retry: Policy with the first and the maximum pause.
    """

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._tries = 0

    def next_s(self) -> float:
        """Return the next pause in seconds, with jitter."""
        self._tries += 1
        return backoff_s(self._retry, self._tries)


class Attempts:
    """Deadline and retry state of one call.

    Args:
        retry: The client's policy.
        timeout_s: Timeout of all attempts in seconds; `math.inf` for no deadline.
        connect_timeout_s: For a call that must not be retried once a server may have received it:
            seconds to retry while no connection can be made. None: the call is idempotent.

    Raises:
        InvalidRequestError: `timeout_s` is not above 0.
    """

    def __init__(
        self, retry: RetryPolicy, timeout_s: float, connect_timeout_s: float | None = None
    ) -> None:
        check_seconds("timeout_s", timeout_s)
        self._attempts = retry.attempts
        self._overload_attempts = retry.overload_attempts
        self._repeatable = connect_timeout_s is None
        self._made = self._refused = 0
        self._backoff = Backoff(retry)
        self._began = time.monotonic()
        self._deadline = self._retry_until = self._began + timeout_s
        if connect_timeout_s is not None:
            self._retry_until = min(self._deadline, self._began + connect_timeout_s)
        self._last: str | None = None  # not the error, whose frames have these attempts

    def left_s(self) -> float:
        """Return the remaining seconds, at least 0.001."""
        return max(1e-3, self._deadline - time.monotonic())

    def over(self) -> bool:
        """Return True if the deadline has expired."""
        return time.monotonic() >= self._deadline

    def grpc_timeout(self) -> float | None:
        """Return the remaining seconds for gRPC: None for no deadline."""
        left_s = self.left_s()
        return None if left_s > LONGEST_S else left_s

    def pause_s(self, error: Resnet50Error) -> float | None:
        """Return the pause before the next attempt in seconds; None for no retry.

        Args:
            error: Error of the attempt; the number of attempts is added to the final one.
        """
        pause_s = self._pause_s(error)
        if pause_s is not None and time.monotonic() + pause_s < self._retry_until:
            return pause_s
        if isinstance(error, UnavailableError) and self._made > 1:
            spent_s = time.monotonic() - self._began
            error._complete(f"; tried {self._made} times in {spent_s:.1f} s")
        if isinstance(error, DeadlineExceededError) and self._last is not None:
            error._complete(f"; the attempt before it failed: {self._last}")
        return None

    def _pause_s(self, error: Resnet50Error) -> float | None:
        if isinstance(error, OverloadedError):
            self._refused += 1
            again = self._repeatable and self._refused < self._overload_attempts
            return error.retry_after_s if again else None
        if not isinstance(error, UnavailableError):
            return None
        self._made += 1
        self._last = error.message
        if self._attempts is not None and self._made >= self._attempts:
            return None
        return self._backoff.next_s() if self._repeatable or error.never_sent else None


class Resumption:
    """Retry state of a stream.

    Args:
        retry: Policy with the pauses.
        resume_s: Seconds to retry without an answer from any server; 0 for no retries.
    """

    def __init__(self, retry: RetryPolicy, resume_s: float) -> None:
        self._resume_s = resume_s
        self._retry = retry
        self._failing_since: float | None = None
        self._breaks = 0
        self._backoff = Backoff(retry)

    def progress(self) -> None:
        """Record a response."""
        self._failing_since, self._breaks = None, 0

    def pause_s(self, error: Resnet50Error, broke: bool = False) -> float | None:
        """Return the pause before the stream is resumed in seconds; None if it is not.

        Args:
            error: The error that ended the stream.
            broke: True if the connection broke with frames in flight. A server was reachable then,
                so `resume_s` starts again: a frame that crashes servers fails (`PendingFrames`)
                before the stream does, even if servers restart slowly. This applies to one frame;
                without a response after it, the servers are considered down.
        """
        if not isinstance(error, UnavailableError):
            return None
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since, self._backoff = now, Backoff(self._retry)
        elif broke and self._breaks < MAX_SENDS:
            self._failing_since = now
        self._breaks += broke
        if self._resume_s == 0 or now - self._failing_since >= self._resume_s:
            return None
        return self._backoff.next_s()
