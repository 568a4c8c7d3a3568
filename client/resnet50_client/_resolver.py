"""Addresses that change: those that a function returns, and those of several host names.

A gRPC target cannot have several names. A single address is resolved by gRPC, again whenever a
connection ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for

from ._addresses import Literals, addresses_of, literals_of, split, target_of, target_of_one
from ._forks import tell_after_fork

# Seconds until names are resolved again: while calls fail, to find a server that has moved; and
# otherwise, because one of several may have moved. A function is called more often: servers come
# and go.
AGAIN_S = 1.0
REFRESH_S = 30.0
POLL_S = 2.0
# Maximum wait for the first lookup; after that gRPC resolves the first address itself.
FIRST_LOOKUP_S = 1.0

log = logging.getLogger(__name__)


class Resolver:
    """Provides gRPC's target for a client's addresses. Usable by many threads and event loops.

    A background thread calls the function and resolves names, one lookup at a time; calls wait only
    for the first one, then use the latest result. Until there is a result, the target is the first
    address, which gRPC resolves itself: if it cannot, the call fails with UNAVAILABLE and is
    retried as usual. A function has no first address: calls wait until it returns one.

    Args:
        addresses: Addresses, as returned by `addresses_of`; unused with a function.
        function: Returns the current addresses. If it fails or returns none, the last ones are
            kept: they may still respond.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        function: Callable[[], str | Sequence[str]] | None = None,
    ) -> None:
        self._addresses = tuple(addresses)
        self._function = function
        self._lock = threading.Lock()
        self._found: dict[str, Literals] = {}
        self._reasons: list[str] = []  # why names are missing
        self._pending: Future[None] | None = None
        self._looked_up_s = -math.inf
        self._failed = False
        self._target = "" if function else target_of_one(self._addresses[0])
        self._fixed = self._known = len(self._addresses) == 1 and function is None
        if not self._fixed and function is None:
            numbers = [literals_of(one) for one in self._addresses]
            self._fixed = self._known = None not in numbers
            if self._fixed:
                self._target = target_of([one for one in numbers if one is not None])
        tell_after_fork(self)

    @property
    def target(self) -> str:
        """The current target; starts a lookup if one is due, without waiting."""
        self._lookup()
        return self._target

    @property
    def problem(self) -> str | None:
        """Why there is no target; None if there is one."""
        if self._target:
            return None
        return "; ".join(self._reasons) or "the function has not returned yet"

    def failed(self) -> None:
        """Record that no server is reachable: names are resolved again soon."""
        self._failed = True

    def wait(self, timeout_s: float = FIRST_LOOKUP_S) -> None:
        """Wait for the first lookup.

        Args:
            timeout_s: Timeout in seconds, at most `FIRST_LOOKUP_S`.
        """
        if (lookup := self._lookup()) is not None:
            wait_for([lookup], min(timeout_s, FIRST_LOOKUP_S))

    async def wait_async(self, timeout_s: float = FIRST_LOOKUP_S) -> None:
        """As `wait`, without blocking the event loop."""
        if (lookup := self._lookup()) is not None:
            waiting = asyncio.wrap_future(lookup)
            try:
                await asyncio.wait([waiting], timeout=min(timeout_s, FIRST_LOOKUP_S))
            finally:
                waiting.cancel()  # the lookup may outlive the event loop

    def after_fork(self) -> None:
        """Create a new lock; a lookup in progress does not exist in the child."""
        self._lock = threading.Lock()
        self._pending = None

    def _lookup(self) -> Future[None] | None:
        """Start a lookup if one is due; return the future of the first one, None if completed."""
        if self._fixed:
            return None
        with self._lock:
            if self._pending is None and self._is_due():
                self._start_lookup()
            return None if self._known else self._pending

    def _start_lookup(self) -> None:
        """Start a lookup; the caller holds the lock.

        Raises:
            RuntimeError: The system's limit of threads is reached, and no address is known yet.
        """
        lookup: Future[None] = Future()
        # So that a waiter that is cancelled does not cancel it for the others.
        lookup.set_running_or_notify_cancel()
        thread = threading.Thread(
            target=self._look_up, args=[lookup], name="resolve names", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            if not self._known:
                raise
            self._looked_up_s = time.monotonic()
            log.warning("server: names cannot be resolved now, the last addresses stay: %s", error)
        else:
            self._pending = lookup

    def _is_due(self) -> bool:
        refresh_s = REFRESH_S if self._function is None else POLL_S
        pause_s = AGAIN_S if self._failed or not self._known else refresh_s
        return time.monotonic() - self._looked_up_s >= pause_s

    def _look_up(self, done: Future[None]) -> None:
        found: dict[str, Literals] = {}
        reasons = []
        addresses = self._addresses
        if self._function is not None:
            try:
                # Sorted, because the order is not a reason for new channels.
                addresses = tuple(sorted(set(addresses_of(self._function()))))
            # Of the application, SystemExit too: logged, and raised if no address is known.
            except BaseException as error:
                reasons.append(_unusable(error))
        for address in addresses if len(addresses) > 1 else ():
            try:
                found[address] = literals_of(address) or _resolved(address)
            except (OSError, UnicodeError) as error:
                reasons.append(f"{address}: {getattr(error, 'strerror', None) or error}")
        with self._lock:
            # If a name cannot be resolved now, its previous addresses are kept.
            self._found = {
                one: (found.get(one) or self._found[one])
                for one in addresses
                if one in found or one in self._found
            }
            self._addresses = addresses
            target = target_of(list(self._found.values())) if self._found else ""
            if len(addresses) == 1:
                target = target_of_one(addresses[0])
            if target:
                if target != self._target:
                    log.debug("server: addresses are now %s", target)
                self._target, self._known = target, True
            self._looked_up_s, self._failed = time.monotonic(), False
            if self._pending is done:
                self._pending = None
            news, self._reasons = reasons != self._reasons, reasons
        if news and reasons:
            kind = "" if self._function else "names that cannot be resolved: "
            log.warning("server: %s%s", kind, "; ".join(reasons))
        done.set_result(None)


def _unusable(error: BaseException) -> str:
    """Return why the result of a function cannot be used."""
    if isinstance(error, ValueError) and str(error).startswith("server: "):
        return f"the function returned {str(error).removeprefix('server: ')}"
    return f"the function failed: {type(error).__name__}: {error}"


def _resolved(address: str) -> Literals:
    """Resolve the name of an address.

    Raises:
        OSError: The name cannot be resolved.
    """
    host, port = split(address)
    found: dict[int, set[str]] = {socket.AF_INET: set(), socket.AF_INET6: set()}
    for family, *_, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if family in found:
            found[family].add(str(where[0]))
    literals = Literals.of(found[socket.AF_INET], found[socket.AF_INET6], port)
    if not literals:
        raise OSError(f"{host} has no IPv4 or IPv6 address")
    return literals
