"""The gateway as a process: listening, signals, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from .addresses import inherited_file, split_address
from .app import create_app
from .http_protocol import protocols
from .metrics import Metrics, create_metrics_app
from .release import release
from .settings import Settings
from .tls import TlsContext
from .upstream import Upstream

log = logging.getLogger(__name__)

BACKLOG = 1024


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM, SIGINT, or the end of the server if it is the parent.

    Returns:
        The exit code: 0 after a drain, 2 if an address or a file of a setting cannot be used.
    """
    closing = asyncio.Event()
    try:
        tls = None if settings.tls_cert is None else TlsContext(settings)
        metrics = Metrics(release())
        upstream = Upstream(settings, metrics)
        listener = _listen("listen", settings.listen)
        exporter = None
        if settings.metrics_listen is not None:
            exporter = _listen("metrics_listen", settings.metrics_listen)
    except OSError as error:
        print(f"resnet50-gateway: {error}", file=sys.stderr)
        return 2
    server = GatewayServer(settings, create_app(settings, upstream, metrics, closing))
    lines = [f"listening on {_url(listener, tls is not None)}"]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        closing.set()
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if inherited_file(settings.listen) is not None:
        # The server, the parent, writes nothing: it has ended when the pipe closes.
        parent = sys.stdin.fileno()

        def end_with_parent() -> None:
            loop.remove_reader(parent)
            stop()

        loop.add_reader(parent, end_with_parent)
    beside = [] if tls is None else [asyncio.create_task(tls.follow_changes())]
    if exporter is not None:
        lines.append(f"metrics on {_url(exporter, False)}")
        exporting = GatewayServer(settings, create_metrics_app(metrics))
        beside.append(asyncio.create_task(exporting.run_on(exporter, None, [])))
    try:
        await server.run_on(listener, None if tls is None else tls.context, lines)
    finally:
        for task in beside:
            task.cancel()
        await upstream.close()
    return 0


class GatewayServer(uvicorn.Server):
    """uvicorn's server on a socket of ours, without its signal handlers and its log.

    Args:
        settings: Limits and timeouts.
        app: The application.
    """

    def __init__(self, settings: Settings, app: object) -> None:
        http, websocket = protocols(settings)
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                http=http,
                ws=websocket,
                ws_max_size=settings.max_message_bytes,
                ws_per_message_deflate=False,  # images are compressed
                loop="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(settings.keep_alive_s) or 1,
                timeout_graceful_shutdown=int(settings.drain_timeout_s),
            )
        )
        self._settings = settings

    async def run_on(
        self, listener: socket.socket, tls: ssl.SSLContext | None, lines: Sequence[str]
    ) -> None:
        """Accept connections until `should_exit`, then drain.

        Args:
            listener: Listens.
            tls: For its connections.
            lines: Printed once connections are accepted.
        """
        self._listener, self._tls, self._lines = listener, tls, lines
        await self.serve()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections and print the lines."""
        self.config.backlog = BACKLOG
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=loop,
            ),
            sock=self._listener,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else self._settings.header_timeout_s,
            backlog=BACKLOG,
        )
        self.servers = [server]
        self.started = True
        for line in self._lines:
            print(line, flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: `serve` has handlers."""
        yield


def _url(listener: socket.socket, encrypted: bool) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if encrypted else 'http'}://{shown}:{port}"


def _listen(setting: str, address: str) -> socket.socket:
    """Return a listening socket.

    Args:
        setting: The name of the setting with the address.
        address: host:port, or an inherited socket.

    Raises:
        OSError: The address cannot be bound; names it.
    """
    if (file := inherited_file(address)) is not None:
        return socket.socket(fileno=file)
    host, port = split_address(address)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(
            f"{setting}: cannot listen on {address}: {error.strerror or error}; stop the process"
            f" that listens there, or set another address with --{setting.replace('_', '-')}"
        ) from error
