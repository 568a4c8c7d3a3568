"""The channel that a client calls over: made anew when certificates or addresses change."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import grpc

from .certificates import Certificates
from .connection import Connection, channel_options
from .errors import Resnet50Error, UnavailableError
from .forks import tell_after_fork
from .resolver import Resolver
from .stubs import Stubs

Option = tuple[str, int | str]


class Channels:
    """Gives the channel to call over. May be used by many threads.

    One whose certificates have been renewed, or whose servers have other addresses now, is left to
    the calls that are in flight on it, and goes with the last of them.

    Args:
        connection: Says where to, and how.
        resolver: Gives gRPC's target.
        kind: `grpc` or `grpc.aio`; the channels are of its kind.
        options: Of channels, besides those of every client.

    Attributes:
        resolver: The same.
        closing: Set when the client is closed; an event of threads or of asyncio, as `kind` is.
    """

    def __init__(
        self, connection: Connection, resolver: Resolver, kind: Any, options: Sequence[Option] = ()
    ) -> None:
        self._connection = connection
        self.resolver = resolver
        self._kind = kind
        self._options = [*channel_options(), *options]
        if (name := connection.server_name()) is not None:
            self._options.append(("grpc.ssl_target_name_override", name))
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._certificates: Certificates | None = None
        self._target = ""
        self._stubs: Stubs | None = None
        self.closing: Any = asyncio.Event() if kind is grpc.aio else threading.Event()
        tell_after_fork(self)

    def stubs(self) -> Stubs:
        """Return what can be called; keep it for as long as the call lasts.

        Raises:
            CallCancelledError: The client has been closed.
        """
        sources = self._connection.credentials.certificates
        with self._lock:
            if self.closing.is_set():
                raise self._connection.closed()
            # Asked for in here: a thread that was slow would put old ones back.
            certificates = sources.current() if sources is not None else None
            target = self.resolver.target
            unchanged = certificates is self._certificates and target == self._target
            if self._stubs is None or not unchanged:
                self._stubs = Stubs(self._channel(target, certificates))
                self._certificates, self._target = certificates, target
                self._open.add(self._stubs.channel)
            return self._stubs

    def failed(self, error: Resnet50Error) -> None:
        """Have names looked up again soon if no server could be reached."""
        if isinstance(error, UnavailableError):
            self.resolver.failed()

    def close(self) -> list[Any]:
        """Open no more channels and wake the calls that wait; return the channels to close."""
        with self._lock:
            self.closing.set()
            return list(self._open)

    def after_fork(self) -> None:
        """Make a new lock: another thread may have held the old one."""
        self._lock = threading.Lock()

    def _channel(self, target: str, certificates: Certificates | None) -> Any:
        if certificates is None:
            return self._kind.insecure_channel(target, self._options)
        return self._kind.secure_channel(target, certificates.for_channel(), self._options)
