"""The host names of a list of addresses, looked up as a client calls: gRPC takes no list of names.

The target of a single address is gRPC's to look up, which it does again when a connection ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for

from .addresses import Literals, literals_of, split, target_of, target_of_one
from .forks import tell_after_fork

# Names are looked up again this long after the last time, in seconds: while calls fail, so that a
# server that has moved is found; and while all is well, since one of several may have moved.
AGAIN_S = 1.0
REFRESH_S = 30.0
# A caller waits so long for the first lookup; a name service that is slower is left to gRPC.
FIRST_LOOKUP_S = 1.0

log = logging.getLogger(__name__)


class Resolver:
    """Gives gRPC's target for a client's addresses. May be used by many threads and event loops.

    Names are looked up in a thread of its own, by one at a time; callers wait for the first time
    only, and then use what was found last until something else is. While nothing is known, the
    target is the first address alone, which gRPC looks up itself: if it cannot, the call fails with
    UNAVAILABLE and is made again like any other.

    Args:
        addresses: As `addresses_of` gives them.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._lock = threading.Lock()
        self._found: dict[str, Literals] = {}
        self._reasons: list[str] = []  # why names are missing
        self._pending: Future[None] | None = None
        self._looked_up_s = -math.inf
        self._failed = False
        self._target = target_of_one(self._addresses[0])
        self._fixed = self._known = len(self._addresses) == 1
        if not self._fixed:
            numbers = [literals_of(one) for one in self._addresses]
            self._fixed = self._known = None not in numbers
            if self._fixed:
                self._target = target_of([one for one in numbers if one is not None])
        tell_after_fork(self)

    @property
    def target(self) -> str:
        """GRPC's target, as it is known now; begins a lookup if one is due, and does not wait."""
        self._lookup()
        return self._target

    def failed(self) -> None:
        """Note that no server could be reached: names are looked up again soon."""
        self._failed = True

    def wait(self, timeout_s: float = FIRST_LOOKUP_S) -> None:
        """Wait for the first lookup.

        Args:
            timeout_s: How long a caller can wait, in seconds; it is `FIRST_LOOKUP_S` at most.
        """
        if (lookup := self._lookup()) is not None:
            wait_for([lookup], min(timeout_s, FIRST_LOOKUP_S))

    async def wait_async(self, timeout_s: float = FIRST_LOOKUP_S) -> None:
        """Wait as `wait` does, without blocking the event loop."""
        if (lookup := self._lookup()) is not None:
            waiting = asyncio.wrap_future(lookup)
            try:
                await asyncio.wait([waiting], timeout=min(timeout_s, FIRST_LOOKUP_S))
            finally:
                waiting.cancel()  # the lookup may outlive the event loop

    def after_fork(self) -> None:
        """Make a new lock; a lookup that was in flight is not in the child."""
        self._lock = threading.Lock()
        self._pending = None

    def _lookup(self) -> Future[None] | None:
        """Begin a lookup if one is due; return what to wait for, None if something is known."""
        if self._fixed:
            return None
        with self._lock:
            if self._pending is None and self._is_due():
                self._pending = Future()
                # So that a waiter that stops waiting does not cancel it for the others.
                self._pending.set_running_or_notify_cancel()
                threading.Thread(
                    target=self._look_up, args=[self._pending], name="resolve names", daemon=True
                ).start()
            return None if self._known else self._pending

    def _is_due(self) -> bool:
        pause_s = AGAIN_S if self._failed or not self._known else REFRESH_S
        return time.monotonic() - self._looked_up_s >= pause_s

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
            if self._found:
                self._target, self._known = target_of(list(self._found.values())), True
            self._looked_up_s, self._failed = time.monotonic(), False
            if self._pending is done:
                self._pending = None
            news, self._reasons = reasons != self._reasons, reasons
        if news and reasons:
            log.warning("server: names that cannot be looked up now: %s", "; ".join(reasons))
        done.set_result(None)


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
