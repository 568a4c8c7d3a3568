"""The client's gRPC channels, replaced when certificates or addresses change."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import grpc

from ._aio_status import keeping_status
from ._channel_config import Option, channel_options
from ._config import Connection
from ._forks import tell_after_fork
from ._resolver import Resolver
from ._stubs import Stubs
from ._tls import Certificates
from .errors import Resnet50Error, UnavailableError

log = logging.getLogger(__name__)


class Channels:
    """Provides the channel to call over. Thread-safe.

    Each channel has a connection to every server; several of them are used in turn. When
    certificates or addresses change, old channels stay open for their calls in flight.

    Args:
        connection: Connection options.
        resolver: Provides gRPC's target.
        kind: `grpc` or `grpc.aio`, the module that creates channels.
        options: Additional channel options.

    Attributes:
        resolver: The resolver.
        closing: Event that is set when the client is closed; of threading or asyncio, as `kind`.
    """

    def __init__(
        self, connection: Connection, resolver: Resolver, kind: Any, options: Sequence[Option] = ()
    ) -> None:
        self._connection = connection
        self.resolver = resolver
        self._kind = kind
        self._options = [*connection.channel.options_over(channel_options()), *options]
        if (name := connection.server_name()) is not None:
            self._options.append(("grpc.ssl_target_name_override", name))
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._waiting: weakref.WeakSet[Any] = weakref.WeakSet()
        self._certificates: Certificates | None = None
        self._target = ""
        self._stubs: list[Stubs] = []
        self._calls = 0
        self.closing: Any = asyncio.Event() if kind is grpc.aio else threading.Event()
        tell_after_fork(self)

    def stubs(self) -> Stubs:
        """Return the stubs of a current channel; keep a reference during a call.

        Raises:
            CallCancelledError: The client is closed.
        """
        sources = self._connection.credentials.certificates
        with self._lock:
            if self.closing.is_set():
                raise self._connection.closed()
            # Under the lock, so that a slow thread does not restore old certificates.
            certificates = sources.current() if sources is not None else None
            target = self.resolver.target
            unchanged = certificates is self._certificates and target == self._target
            if not self._stubs or not unchanged:
                log.debug("opening a channel to %s%s", target, " with TLS" if certificates else "")
                count = self._connection.channel.connections
                self._stubs = [Stubs(self._channel(target, certificates)) for _ in range(count)]
                self._certificates, self._target = certificates, target
                self._open.update(stubs.channel for stubs in self._stubs)
            self._calls += 1
            return self._stubs[self._calls % len(self._stubs)]

    def failed(self, error: Resnet50Error) -> None:
        """Resolve names again soon if no server is reachable."""
        if isinstance(error, UnavailableError):
            self.resolver.failed()

    def wake_at_close(self, stream: Any) -> None:
        """Call `stream.wake()` when the client is closed; keeps a weak reference."""
        with self._lock:
            self._waiting.add(stream)

    def close(self) -> list[Any]:
        """Stop opening channels and wake waiting calls; return the channels to close."""
        with self._lock:
            self.closing.set()
            channels, streams = list(self._open), list(self._waiting)
        for stream in streams:
            stream.wake()
        return channels

    def after_fork(self) -> None:
        """Create a new lock: another thread may have held the old one."""
        self._lock = threading.Lock()

    def _channel(self, target: str, certificates: Certificates | None) -> Any:
        config = self._connection.channel
        settings: dict[str, Any] = {"compression": config.algorithm()}
        if self._kind is grpc.aio:
            settings["interceptors"] = [*config.interceptors, *keeping_status(config.interceptors)]
        if certificates is None:
            channel = self._kind.insecure_channel(target, self._options, **settings)
        else:
            credentials = certificates.for_channel()
            channel = self._kind.secure_channel(target, credentials, self._options, **settings)
        if config.interceptors and self._kind is grpc:
            channel = grpc.intercept_channel(channel, *config.interceptors)
        return channel
