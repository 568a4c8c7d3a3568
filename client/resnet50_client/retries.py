"""When a failed call is made again, and when a broken stream is opened again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from .arguments import check_count, check_seconds
from .errors import DeadlineExceededError, OverloadedError, Resnet50Error, UnavailableError

# Shorter pauses would be a busy loop.
SHORTEST_BACKOFF_S = 0.01
# gRPC cannot count further than some centuries.
LONGEST_S = 365 * 24 * 3600.0
# One frame of a stream is sent so often, at most, if the connection breaks under it each time.
MAX_SENDS = 4


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed call is made again, within its deadline.

    An image's answer is the same whenever it is computed, so repeating a call is safe. Calls that
    change variants are repeated only if no connection could be made, so that no server can have
    received them, and only for the client's `timeout_s`.

    Attributes:
        attempts: How often a call is made in all while no server can be reached or the call is lost
            on its way (UNAVAILABLE), each time at the next address. None, the default: until its
            deadline. 1: fail at once.
        initial_backoff_s: The first pause between two attempts, in seconds, 0.01 at least; each one
            is twice the one before. All are varied by 20%, so that clients of one server do not
            come back together.
        max_backoff_s: The longest pause, in seconds.
        overload_attempts: How often a call is made in all while servers are full
            (RESOURCE_EXHAUSTED), each time after the pause that the server asks for. 1, the
            default, means no retry: sending more to a full server is for callers to decide.

    Raises:
        ValueError: One of them is out of range.
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


class Backoff:
    """The pauses between attempts, each about twice the one before.

    Args:
        retry: Says the first and the longest.
    """

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._next_s = retry.initial_backoff_s

    def next_s(self) -> float:
        """Return the next pause, in seconds; not the same for all callers of a server."""
        pause_s = self._next_s * random.uniform(0.8, 1.2)
        self._next_s = min(2 * self._next_s, self._retry.max_backoff_s)
        return pause_s


class Attempts:
    """The deadline of one call, and whether it is made again.

    Args:
        retry: The client's policy.
        timeout_s: For all attempts together; `math.inf` for no deadline.
        connect_timeout_s: Of a call that must not be repeated once a server may have received it:
            how long it is tried while no connection can be made. None: the call is safe to repeat.

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
        self._last: UnavailableError | None = None

    def left_s(self) -> float:
        """Return the time that is left, in seconds; a little even when there is none."""
        return max(1e-3, self._deadline - time.monotonic())

    def over(self) -> bool:
        """Return whether no time is left."""
        return time.monotonic() >= self._deadline

    def grpc_timeout(self) -> float | None:
        """Return the same as gRPC takes it: None for no deadline."""
        left_s = self.left_s()
        return None if left_s > LONGEST_S else left_s

    def pause_s(self, error: Resnet50Error) -> float | None:
        """Return how long to wait before the next attempt; None if there is none to make.

        Args:
            error: How this one failed; its message is completed if it is the last.
        """
        pause_s = self._pause_s(error)
        if pause_s is not None and time.monotonic() + pause_s < self._retry_until:
            return pause_s
        if isinstance(error, UnavailableError) and self._made > 1:
            spent_s = time.monotonic() - self._began
            error._complete(f"; tried {self._made} times in {spent_s:.1f} s")
        if isinstance(error, DeadlineExceededError) and self._last is not None:
            error._complete(f"; the attempt before it failed: {self._last.message}")
        return None

    def _pause_s(self, error: Resnet50Error) -> float | None:
        if isinstance(error, OverloadedError):
            self._refused += 1
            return error.retry_after_s if self._refused < self._overload_attempts else None
        if not isinstance(error, UnavailableError):
            return None
        self._made += 1
        self._last = error
        if self._attempts is not None and self._made >= self._attempts:
            return None
        return self._backoff.next_s() if self._repeatable or error.never_sent else None


class Resumption:
    """Whether a broken stream is opened again, and after which pause.

    Args:
        retry: Gives the pauses.
        resume_s: How long to go on without an answer from any server, in seconds; 0 for not at all.
    """

    def __init__(self, retry: RetryPolicy, resume_s: float) -> None:
        self._resume_s = resume_s
        self._retry = retry
        self._failing_since: float | None = None
        self._breaks = 0
        self._backoff = Backoff(retry)

    def progress(self) -> None:
        """Note that an answer came."""
        self._failing_since, self._breaks = None, 0

    def pause_s(self, error: Resnet50Error, broke: bool = False) -> float | None:
        """Return how long to wait before the stream is opened again; None if it is not.

        Args:
            error: Why it ended.
            broke: Whether the connection broke under frames that had been sent. A server was
                reached then, so `resume_s` starts again: a frame that stops each server it is sent
                to times out (`PendingFrames`) before the stream is, however long servers take to
                restart. This holds for one frame; if nothing is answered after it, the servers are
                to blame.
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
