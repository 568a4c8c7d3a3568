"""How much may be inside the server at once, and how much of it may be one caller's.

Beyond that, single requests are refused, each with the limit that it met; frames of a stream wait
in order (`AdmissionQueue`) and are woken by what is released.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

from resnet50_server.context import INTERACTIVE, limit_for
from resnet50_server.errors import Overloaded, ShuttingDown

from .admission_queue import AdmissionQueue, Waiter

# Room comes back as soon as any request is answered, so callers need not wait long.
RETRY_AFTER_S = 0.1
# Room is kept for so long for a single request that was refused while frames wait.
KEPT_S = 2 * RETRY_AFTER_S
# So many callers are remembered for their rate before it is looked which ones can be forgotten.
REMEMBERED_CALLERS = 1024
# The limits of all callers together that images meet.
_OF_ALL = ("max_requests", "max_request_bytes")


@dataclass(frozen=True)
class Limits:
    """What may be inside at once.

    Attributes:
        requests: Images, from arrival to answer.
        bytes: The sum of their lengths.
        streams: Open streams.
        uploads: Images that arrive in chunks.
        requests_per_caller: Of `requests`, how many may be one caller's.
        bytes_per_caller: The same of `bytes`.
        streams_per_caller: The same of `streams`.
        uploads_per_caller: The same of `uploads`.
        rate_per_caller: Images a second from one caller; 0 for any.
    """

    requests: int = 1024
    bytes: int = 512 * 2**20
    streams: int = 1024
    uploads: int = 1024
    requests_per_caller: int = 1024
    bytes_per_caller: int = 512 * 2**20
    streams_per_caller: int = 1024
    uploads_per_caller: int = 1024
    rate_per_caller: float = 0.0


class _Inside:
    """What is inside, of all or of one caller."""

    __slots__ = ("bytes", "paid_until", "requests", "streams", "uploads")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self.streams = 0
        self.uploads = 0
        # When, at the rate it may have, the caller could have sent all it has sent.
        self.paid_until = 0.0

    @property
    def empty(self) -> bool:
        return not (self.requests or self.streams or self.uploads)


class Admission:
    """Counts images, their bytes and open streams, of all and of each caller. Event loop only.

    Single requests and frames that wait take turns: while single requests are refused, every other
    one of the permits that are released is kept for a single request.

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
        self._queue = AdmissionQueue()
        # The bytes of a single request for which a permit is kept; None if none is.
        self._kept: int | None = None
        self._keeping: asyncio.TimerHandle | None = None
        self._frames_turn = False

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

    @property
    def waiting(self) -> int:
        """How many frames wait to be admitted."""
        return len(self._queue)

    def admit(self, caller: str, length: int = 0, *, bulk: bool = False) -> Place:
        """Take a permit for one image; leaving the `with` block releases it.

        Args:
            caller: Whose it is.
            length: The image's bytes, as far as they are here.
            bulk: Whether it leaves a share of the limits to interactive ones.

        Raises:
            Overloaded: There is no room; names the limit.
            ShuttingDown: The server takes no more images.
        """
        self._check_open()
        mine = self._of(caller)
        head = self._head_bytes() if self._queue else 0
        if (full := self._full(mine, length, bulk, for_others=head)) is not None:
            self._refuse(full, caller, mine, length, bulk)
        self._check_rate(caller, mine)
        if self._queue:
            self._frames_turn = True
            self._keep_nothing()
        return self._take(caller, mine, length, bulk)

    async def acquire(self, caller: str, length: int = 0, *, bulk: bool = False) -> Place:
        """Take a permit for one frame as soon as there is room for it.

        Args:
            caller: Whose it is.
            length: The frame's bytes.
            bulk: As `admit`.

        Raises:
            ShuttingDown: The server takes no more images.
        """
        self._check_open()
        mine = self._of(caller)
        if not self._queue and self._full(mine, length, bulk) is None and not self._ahead_s(mine):
            return self._take(caller, mine, length, bulk)
        waiter = Waiter(caller, length, bulk, asyncio.get_running_loop().create_future())
        self._queue.push(waiter)
        self._grant()
        try:
            return await waiter.admitted
        except asyncio.CancelledError:
            if not waiter.admitted.done() or waiter.admitted.cancelled():
                self._queue.remove(waiter)
                self._grant()  # it may have been what the others waited behind
            elif waiter.admitted.exception() is None:
                waiter.admitted.result().leave()
            raise

    def drain(self) -> None:
        """Take no more images; those that wait to be admitted are refused."""
        self.draining = True
        for waiter in self._queue.clear():
            if not waiter.admitted.done():
                waiter.admitted.set_exception(ShuttingDown())

    def check(self, caller: str, *, bulk: bool = False) -> None:
        """Raise what `admit` would for an image without bytes, and take nothing."""
        self._check_open()
        mine = self._of(caller)
        if (full := self._full(mine, 0, bulk)) is not None:
            self._refuse(full, caller, mine, 0, bulk)
        self._check_rate(caller, mine)

    @contextmanager
    def stream(self, caller: str) -> Iterator[None]:
        """Count a stream as open.

        Raises:
            Overloaded: Too many are; names the limit.
            ShuttingDown: The server takes no more streams.
        """
        self._check_open()
        limits, mine = self.limits, self._of(caller)
        for full, there, allowed in (
            ("max_streams", self._all.streams, limits.streams),
            ("max_streams_per_caller", mine.streams, limits.streams_per_caller),
        ):
            if there >= allowed:
                raise self._overloaded(full, caller, mine, bulk=False)
        self._callers[caller] = mine
        self._all.streams += 1
        mine.streams += 1
        try:
            yield
        finally:
            self._all.streams -= 1
            mine.streams -= 1
            self._forget(caller, mine)

    @contextmanager
    def upload(self, caller: str) -> Iterator[None]:
        """Count an upload as arriving.

        Raises:
            Overloaded: Too many are; names the limit.
        """
        limits, mine = self.limits, self._of(caller)
        for full, there, allowed in (
            ("max_uploads", self._all.uploads, limits.uploads),
            ("max_uploads_per_caller", mine.uploads, limits.uploads_per_caller),
        ):
            if there >= allowed:
                raise self._overloaded(full, caller, mine, bulk=False)
        self._callers[caller] = mine
        self._all.uploads += 1
        mine.uploads += 1
        try:
            yield
        finally:
            self._all.uploads -= 1
            mine.uploads -= 1
            self._forget(caller, mine)

    def leave(self, caller: str, mine: _Inside, length: int) -> None:
        """Take out one image; frames that wait are admitted into the room."""
        self._all.requests -= 1
        self._all.bytes -= length
        mine.requests -= 1
        mine.bytes -= length
        self._forget(caller, mine)
        if self._queue:
            self._queue.resume(caller)
            self._grant()

    def _check_open(self) -> None:
        if self.draining:
            self.turned_away += 1
            raise ShuttingDown()

    def _refuse(self, full: str, caller: str, mine: _Inside, length: int, bulk: bool) -> NoReturn:
        """Refuse a single request, and keep the next room for one if it is their turn."""
        if full in _OF_ALL and self._queue and not self._frames_turn:
            self._keep(length)
        raise self._overloaded(full, caller, mine, bulk)

    def _check_rate(self, caller: str, mine: _Inside) -> None:
        if ahead_s := self._ahead_s(mine):
            raise Overloaded(
                "max_rate_per_caller",
                f"max_rate_per_caller ({self.limits.rate_per_caller:g} images/s): {caller} sends"
                " faster",
                ahead_s,
            )

    def _full(self, mine: _Inside, length: int, bulk: bool, for_others: int = 0) -> str | None:
        """Return the limit that one more image would break; None if there is room.

        Args:
            mine: The caller's.
            length: The image's bytes.
            bulk: As `admit`.
            for_others: Bytes that are kept for somebody else.
        """
        limits = self.limits
        if self._all.requests >= limit_for(limits.requests, bulk):
            return "max_requests"
        if mine.requests >= limit_for(limits.requests_per_caller, bulk):
            return "max_requests_per_caller"
        return self._full_of_bytes(mine, length, bulk, for_others=for_others)

    def _full_of_bytes(
        self, mine: _Inside, length: int, bulk: bool, already: int = 0, for_others: int = 0
    ) -> str | None:
        """Return the limit that more bytes would break.

        One image alone may be larger than the limit: it would be refused for ever.

        Args:
            mine: The caller's.
            length: How many more.
            bulk: As `admit`.
            already: Those of the same image that are counted.
            for_others: As `_full`.
        """
        limits, everyone = self.limits, self._all.bytes
        if everyone > already and everyone + length + for_others > limit_for(limits.bytes, bulk):
            return "max_request_bytes"
        if mine.bytes > already and mine.bytes + length > limit_for(limits.bytes_per_caller, bulk):
            return "max_request_bytes_per_caller"
        return None

    def _overloaded(self, full: str, caller: str, mine: _Inside, bulk: bool) -> Overloaded:
        """Return the refusal that names a limit."""
        limits, everyone = self.limits, self._all
        allowed, what = {
            "max_requests": (limits.requests, f"{everyone.requests} requests"),
            "max_requests_per_caller": (
                limits.requests_per_caller,
                f"{mine.requests} requests of {caller}",
            ),
            "max_request_bytes": (limits.bytes, f"{everyone.bytes} bytes of images"),
            "max_request_bytes_per_caller": (
                limits.bytes_per_caller,
                f"{mine.bytes} bytes of images of {caller}",
            ),
            "max_streams": (limits.streams, f"{everyone.streams} streams"),
            "max_streams_per_caller": (
                limits.streams_per_caller,
                f"{mine.streams} streams of {caller}",
            ),
            "max_uploads": (limits.uploads, f"{everyone.uploads} uploads"),
            "max_uploads_per_caller": (
                limits.uploads_per_caller,
                f"{mine.uploads} uploads of {caller}",
            ),
        }[full]
        waiting = f", and {self.waiting} frames wait" if full in _OF_ALL and self._queue else ""
        rest = f", and the rest is for {INTERACTIVE} requests" if bulk else ""
        return Overloaded(
            full, f"{full} ({allowed}): {what} are inside the server{waiting}{rest}", RETRY_AFTER_S
        )

    def _take(self, caller: str, mine: _Inside, length: int, bulk: bool) -> Place:
        """Count an image for which there is room."""
        if rate := self.limits.rate_per_caller:
            mine.paid_until = max(mine.paid_until, self._clock()) + 1.0 / rate
        self._callers[caller] = mine
        for inside in (self._all, mine):
            inside.requests += 1
            inside.bytes += length
        return Place(self, caller, mine, bulk, length)

    def _grant(self) -> None:
        """Admit frames that wait, as far as there is room."""
        while self._queue and any(self._grant_one(bulk) for bulk in self._queue.lanes()):
            pass

    def _grant_one(self, bulk: bool) -> bool:
        """Admit the first frame of a lane whose caller may have one; return whether there was."""
        kept, kept_bytes = (0, 0) if self._kept is None else (1, self._kept)
        while (waiter := self._queue.head(bulk)) is not None:
            mine = self._of(waiter.caller)
            if self._all.requests + kept >= limit_for(self.limits.requests, bulk):
                return False
            full = self._full(mine, waiter.length, bulk, for_others=kept_bytes)
            if full in _OF_ALL:
                return False
            if full is not None:
                self._queue.park(waiter)
            elif ahead_s := self._ahead_s(mine):
                self._queue.park(waiter)
                asyncio.get_running_loop().call_later(ahead_s, self._resume, waiter.caller)
            else:
                self._queue.pop(waiter)
                if not waiter.admitted.done():
                    self._frames_turn = False
                    place = self._take(waiter.caller, mine, waiter.length, bulk)
                    waiter.admitted.set_result(place)
                return True
        return False

    def _resume(self, caller: str) -> None:
        """Look at a caller's frames once its rate allows one."""
        self._queue.resume(caller)
        self._grant()

    def _head_bytes(self) -> int:
        """Return the bytes that are kept for the next frame, if it is the frames' turn."""
        head = self._queue.head(bulk=False) if self._frames_turn else None
        return 0 if head is None else head.length

    def _keep(self, length: int) -> None:
        """Keep the next room for a single request that was refused, for a while."""
        if self._kept is None:
            self._kept = length
            self._keeping = asyncio.get_running_loop().call_later(KEPT_S, self._keep_no_longer)

    def _keep_nothing(self) -> None:
        self._kept = None
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None

    def _keep_no_longer(self) -> None:
        self._keep_nothing()
        self._frames_turn = True
        self._grant()

    def _of(self, caller: str) -> _Inside:
        return self._callers.get(caller) or _Inside()

    def _ahead_s(self, mine: _Inside) -> float:
        """Return for how long a caller must wait to keep `rate_per_caller`; 0 if it need not.

        It may send as many at once as in a second.
        """
        rate = self.limits.rate_per_caller
        if not rate:
            return 0.0
        now = self._clock()
        ahead_s = max(mine.paid_until, now) + 1.0 / rate - now - max(1.0, 1.0 / rate)
        return ahead_s if ahead_s > 1e-9 else 0.0

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
    """An image's permit.

    Args:
        admission: What has given it.
        caller: Whose it is.
        mine: What of the caller is inside.
        bulk: As `Admission.admit`.
        length: The image's bytes that are counted already.
    """

    __slots__ = ("_admission", "_bulk", "_bytes", "_caller", "_mine")

    def __init__(
        self, admission: Admission, caller: str, mine: _Inside, bulk: bool, length: int
    ) -> None:
        self._admission = admission
        self._caller = caller
        self._mine = mine
        self._bulk = bulk
        self._bytes = length

    def grow(self, length: int) -> None:
        """Take room for more bytes of the image.

        Raises:
            Overloaded: There is none; names the limit.
        """
        admission = self._admission
        full = admission._full_of_bytes(self._mine, length, self._bulk, already=self._bytes)
        if full is not None:
            raise admission._overloaded(full, self._caller, self._mine, self._bulk)
        admission._all.bytes += length
        self._mine.bytes += length
        self._bytes += length

    def leave(self) -> None:
        """Release it; once."""
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


def slots_of(max_bytes: int, max_message_bytes: int) -> int:
    """Return how many messages of the largest size fit into a limit; at least one."""
    return max(1, max_bytes // max_message_bytes)
