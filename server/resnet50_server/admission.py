"""How much may be inside the server at once, and how much of it may be one caller's.

Beyond that, single requests are refused instead of queued, each with the limit that it met; frames
of a stream wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from .errors import Overloaded, ShuttingDown
from .priority import INTERACTIVE, share

# Room comes back as soon as any request is answered, so callers need not wait long.
RETRY_AFTER_S = 0.1
# So many callers are remembered for their rate before it is looked which ones can be forgotten.
REMEMBERED_CALLERS = 1024


@dataclass(frozen=True)
class Limits:
    """What may be inside at once.

    Attributes:
        requests: Images, from arrival to answer.
        bytes: The sum of their lengths.
        streams: Open streams.
        requests_per_caller: Of `requests`, how many may be one caller's.
        bytes_per_caller: The same of `bytes`.
        streams_per_caller: The same of `streams`.
        rate_per_caller: Images a second from one caller; 0 for any.
    """

    requests: int = 1024
    bytes: int = 512 * 2**20
    streams: int = 1024
    requests_per_caller: int = 1024
    bytes_per_caller: int = 512 * 2**20
    streams_per_caller: int = 1024
    rate_per_caller: float = 0.0


class _Inside:
    """What is inside, of all or of one caller."""

    __slots__ = ("bytes", "paid_until", "requests", "streams")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self.streams = 0
        # When, at the rate it may have, the caller could have sent all it has sent.
        self.paid_until = 0.0

    @property
    def empty(self) -> bool:
        return not (self.requests or self.streams)


class Admission:
    """Counts images, their bytes and open streams, of all and of each caller. Event loop only.

    Args:
        limits: What may be inside.
        clock: Tells the time, in seconds.

    Attributes:
        draining: Set once no more requests are taken.
        turned_away: How many came after that.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.draining = False
        self.turned_away = 0
        self._clock = clock
        self._all = _Inside()
        self._callers: dict[str, _Inside] = {}
        self._look_at = REMEMBERED_CALLERS

    @property
    def requests(self) -> int:
        """How many images are inside."""
        return self._all.requests

    @property
    def bytes(self) -> int:
        """The sum of their lengths."""
        return self._all.bytes

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._all.streams

    def admit(self, caller: str, length: int = 0, *, bulk: bool = False) -> Place:
        """Take a place for one image; leaving the `with` block gives it back.

        Args:
            caller: Whose it is.
            length: The image's bytes, as far as they are here.
            bulk: Whether it leaves a share of the limits to interactive ones.

        Raises:
            Overloaded: There is no room; names the limit.
            ShuttingDown: The server takes no more images.
        """
        self._check_open()
        limits, mine = self.limits, self._of(caller)
        self._check("max_requests", self._all.requests, limits.requests, "requests", bulk)
        self._check(
            "max_requests_per_caller",
            mine.requests,
            limits.requests_per_caller,
            f"requests of {caller}",
            bulk,
        )
        place = Place(self, caller, mine, bulk)
        place.check(length)
        if limits.rate_per_caller:
            self._take_turn(caller, mine)
        self._callers[caller] = mine
        self._all.requests += 1
        mine.requests += 1
        place.grow(length)
        return place

    @contextmanager
    def stream(self, caller: str) -> Iterator[None]:
        """Count a stream as open.

        Raises:
            Overloaded: Too many are; names the limit.
            ShuttingDown: The server takes no more streams.
        """
        self._check_open()
        limits, mine = self.limits, self._of(caller)
        self._check("max_streams", self._all.streams, limits.streams, "streams")
        self._check(
            "max_streams_per_caller",
            mine.streams,
            limits.streams_per_caller,
            f"streams of {caller}",
        )
        self._callers[caller] = mine
        self._all.streams += 1
        mine.streams += 1
        try:
            yield
        finally:
            self._all.streams -= 1
            mine.streams -= 1
            self._forget(caller, mine)

    def leave(self, caller: str, mine: _Inside, length: int) -> None:
        """Take out one image."""
        self._all.requests -= 1
        self._all.bytes -= length
        mine.requests -= 1
        mine.bytes -= length
        self._forget(caller, mine)

    def _check_open(self) -> None:
        if self.draining:
            self.turned_away += 1
            raise ShuttingDown()

    def _check(self, limit: str, inside: int, allowed: int, what: str, bulk: bool = False) -> None:
        if inside >= share(allowed, bulk):
            raise _full(limit, allowed, f"{inside} {what} are inside the server", bulk)

    def _of(self, caller: str) -> _Inside:
        return self._callers.get(caller) or _Inside()

    def _take_turn(self, caller: str, mine: _Inside) -> None:
        """Let a caller have `rate_per_caller` images a second, and as many at once."""
        rate, now = self.limits.rate_per_caller, self._clock()
        paid_until = max(mine.paid_until, now) + 1.0 / rate
        ahead_s = paid_until - now - max(1.0, 1.0 / rate)
        if ahead_s > 1e-9:
            raise Overloaded(
                "max_rate_per_caller",
                f"max_rate_per_caller ({rate:g} images/s): {caller} sends faster",
                ahead_s,
            )
        mine.paid_until = paid_until

    def _forget(self, caller: str, mine: _Inside) -> None:
        """Keep no record of those that have nothing inside, but for their rate."""
        if not mine.empty:
            return
        if mine.paid_until <= self._clock():
            self._callers.pop(caller, None)
        elif len(self._callers) > self._look_at:
            now = self._clock()
            self._callers = {
                name: inside
                for name, inside in self._callers.items()
                if not inside.empty or inside.paid_until > now
            }
            self._look_at = max(REMEMBERED_CALLERS, 2 * len(self._callers))


class Place:
    """An image's place inside the server.

    Args:
        admission: Where the place is.
        caller: Whose it is.
        mine: What of the caller is inside.
        bulk: As `Admission.admit`.
    """

    __slots__ = ("_admission", "_bulk", "_bytes", "_caller", "_mine")

    def __init__(self, admission: Admission, caller: str, mine: _Inside, bulk: bool) -> None:
        self._admission = admission
        self._caller = caller
        self._mine = mine
        self._bulk = bulk
        self._bytes = 0

    def check(self, length: int) -> None:
        """Raise what `grow` would."""
        admission, limits = self._admission, self._admission.limits
        for limit, inside, allowed, whose in (
            ("max_request_bytes", admission._all, limits.bytes, ""),
            (
                "max_request_bytes_per_caller",
                self._mine,
                limits.bytes_per_caller,
                f" of {self._caller}",
            ),
        ):
            # One image alone may be larger than the limit: refusing it for ever would help nobody.
            others = inside.bytes - self._bytes
            if others and inside.bytes + length > share(allowed, self._bulk):
                what = f"{inside.bytes} bytes of images{whose} are inside the server"
                raise _full(limit, allowed, what, self._bulk)

    def grow(self, length: int) -> None:
        """Take room for more bytes.

        Raises:
            Overloaded: There is none; names the limit.
        """
        self.check(length)
        self._admission._all.bytes += length
        self._mine.bytes += length
        self._bytes += length

    def leave(self) -> None:
        """Give the place back; once."""
        self._admission.leave(self._caller, self._mine, self._bytes)

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()


def _full(limit: str, allowed: int, reason: str, bulk: bool) -> Overloaded:
    rest = f", and the rest is for {INTERACTIVE} requests" if bulk else ""
    return Overloaded(limit, f"{limit} ({allowed}): {reason}{rest}", RETRY_AFTER_S)
