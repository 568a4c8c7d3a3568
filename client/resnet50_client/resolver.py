"""The host names of a list of addresses, looked up as a client calls: gRPC takes no list of names.

The target of a single address is gRPC's to look up, which it does again when a connection ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from .addresses import Literals, literals_of, split, target_of, target_of_one
from .errors import DeadlineExceededError, UnavailableError
from .forks import tell_after_fork

# Names are looked up again this long after the last time, in seconds: while calls fail, so that a
# server that has moved is found; and while all is well, since one of several may have moved.
AGAIN_S = 1.0
REFRESH_S = 30.0

log = logging.getLogger(__name__)


class Resolver:
    """Gives gRPC's target for a client's addresses. May be used by many threads and event loops.

    Names are looked up in a thread of its own, by one at a time; callers wait for the first time
    only, and then use what was found last until something else is.

    Args:
        addresses: As `addresses_of` gives them.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._lock = threading.Lock()
        self._found: dict[str, Literals] = {}
        self._target: str | None = None
        self._reason = ""  # why names are missing
        self._reported = ""
        self._pending: Future[None] | None = None
        self._looked_up_s = 0.0
        self._failed = False
        self._fixed = len(self._addresses) == 1
        if self._fixed:
            self._target = target_of_one(self._addresses[0])
        else:
            known = {one: literals_of(one) for one in self._addresses}
            self._found = {one: found for one, found in known.items() if found is not None}
            self._fixed = len(self._found) == len(known)
            if self._fixed:
                self._target = target_of(list(self._found.values()))
        tell_after_fork(self)

    @property
    def target(self) -> str:
        """GRPC's target, as last found; `wait` or `wait_async` comes first."""
        assert self._target is not None
        return self._target

    def failed(self) -> None:
        """Say that no server could be reached: names are looked up again soon."""
        self._failed = True

    def wait(self, timeout_s: float) -> None:
        """Return as soon as there is a target.

        Args:
            timeout_s: How long to wait at most, in seconds.

        Raises:
            UnavailableError: No name can be looked up.
            DeadlineExceededError: It takes longer.
        """
        while (lookup := self._lookup()) is not None:
            try:
                lookup.result(min(timeout_s, threading.TIMEOUT_MAX))
            except FutureTimeout:
                raise self._too_slow() from None
            self._check()

    async def wait_async(self, timeout_s: float) -> None:
        """Wait as `wait` does, without blocking the event loop."""
        while (lookup := self._lookup()) is not None:
            waiting = asyncio.wrap_future(lookup)
            await asyncio.wait([waiting], timeout=min(timeout_s, threading.TIMEOUT_MAX))
            if not waiting.done():
                waiting.cancel()
                raise self._too_slow()
            self._check()

    def after_fork(self) -> None:
        """Make a new lock; a lookup that was under way is not in the child."""
        self._lock = threading.Lock()
        self._pending = None

    def _lookup(self) -> Future[None] | None:
        """Begin a lookup if one is due; return what to wait for, None if there is a target."""
        if self._fixed:
            return None
        with self._lock:
            if self._pending is None and self._is_due():
                self._pending = Future()
                # So that nobody who stops waiting can cancel it for the others.
                self._pending.set_running_or_notify_cancel()
                threading.Thread(
                    target=self._look_up, args=[self._pending], name="resolve names", daemon=True
                ).start()
            return self._pending if self._target is None else None

    def _is_due(self) -> bool:
        pause_s = AGAIN_S if self._failed else REFRESH_S
        return self._target is None or time.monotonic() - self._looked_up_s >= pause_s

    def _look_up(self, done: Future[None]) -> None:
        found: dict[str, Literals] = {}
        reasons = []
        for address in self._addresses:
            try:
                found[address] = literals_of(address) or _resolved(address)
            except (OSError, UnicodeError) as error:
                reasons.append(f"{address}: {getattr(error, 'strerror', None) or error}")
        with self._lock:
            # Of a name that cannot be looked up now, what was found before is used on.
            self._found = {
                one: (found.get(one) or self._found[one])
                for one in self._addresses
                if one in found or one in self._found
            }
            self._target = target_of(list(self._found.values())) if self._found else None
            self._reason = "; ".join(reasons)
            self._looked_up_s, self._failed = time.monotonic(), False
            if self._pending is done:
                self._pending = None
            news, self._reported = self._reason != self._reported, self._reason
        if news and reasons and self._found:
            log.warning("server: names that cannot be looked up are left out: %s", self._reason)
        done.set_result(None)

    def _check(self) -> None:
        if self._target is None:
            raise UnavailableError(
                f"no name of the servers can be looked up: {self._reason}; is it right, and is the"
                " name service reachable?",
                code="UNAVAILABLE",
            )

    def _too_slow(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"{', '.join(self._addresses)}: the names were not looked up within timeout_s; allow"
            " more time, or look at the name service",
            code="DEADLINE_EXCEEDED",
        )


def _resolved(address: str) -> Literals:
    """Look up the name of an address.

    Raises:
        OSError: It cannot be.
    """
    host, port = split(address)
    found: dict[int, set[str]] = {socket.AF_INET: set(), socket.AF_INET6: set()}
    for family, *_, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if family in found:
            found[family].add(str(where[0]))
    literals = Literals.of(found[socket.AF_INET], found[socket.AF_INET6], port)
    if not literals:
        raise OSError(f"{host} has no address of IPv4 or IPv6")
    return literals
