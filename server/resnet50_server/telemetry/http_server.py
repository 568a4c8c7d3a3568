"""HTTP port for operators: `/metrics` for Prometheus, `/livez` and `/readyz` for supervisors.

It has threads of its own, so it responds while the event loop is busy, and reports a blocked loop.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from resnet50_server.runtime.loop import LoopTimeout, call_on_loop
from resnet50_server.runtime.worker_threads import name_thread

# An event loop that has not responded for this long is reported as blocked.
LIVE_TIMEOUT_S = 5.0
# How long a client may send, or receive, nothing.
CLIENT_TIMEOUT_S = 5.0
# At most this many connections; a further one closes the oldest.
MAX_CONNECTIONS = 16
POLL_INTERVAL_S = 0.1


class MetricsServer(ThreadingMixIn, TCPServer):
    """Responds from construction until `close`; constructed on the server's running event loop.

    Args:
        address: host:port; port 0 takes a free one.
        registry: Exported by `/metrics`.
        dead: Returns why the server is lost, None if it is not; called on the event loop.
        unready: Returns why the server rejects images, None if not; called on the event loop.

    Attributes:
        url: Where it listens.

    Raises:
        OSError: It cannot listen on the address.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        dead: Callable[[], str | None],
        unready: Callable[[], str | None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.probes = {
            "/livez": partial(call_on_loop, loop, dead, LIVE_TIMEOUT_S),
            "/readyz": partial(call_on_loop, loop, unready, LIVE_TIMEOUT_S),
        }
        self._connections: dict[socket.socket, None] = {}  # the oldest first
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._numbers = itertools.count(1)
        host, _, port = address.rpartition(":")
        bind = (host.strip("[]"), int(port))
        try:
            self.address_family = socket.getaddrinfo(*bind, type=socket.SOCK_STREAM)[0][0]
            super().__init__(bind, _Handler.factory(registry))
        except OSError as error:
            raise OSError(
                f"metrics_listen: cannot listen on {address}: {error.strerror or error}; stop the"
                " process that listens there, or name another address with --metrics-listen"
            ) from error
        self.url = f"http://{host}:{self.server_address[1]}"
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop listening and close all connections."""
        await asyncio.to_thread(self.shutdown)
        self.server_close()
        for connection in list(self._connections):
            _close_connection(connection)

    def _serve(self) -> None:
        name_thread()
        self.serve_forever(POLL_INTERVAL_S)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread; close the oldest connection if there are too many."""
        if not self._free.acquire(blocking=False):
            for oldest in list(self._connections)[:1]:
                _close_connection(oldest)
            if not self._free.acquire(timeout=LIVE_TIMEOUT_S):
                self.shutdown_request(request)
                return
        self._connections[request] = None
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system's limit of threads; the base class closes the connection
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection."""
        threading.current_thread().name = f"metrics-{next(self._numbers)}"
        name_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect; the default prints a traceback."""

    def _forget(self, request: Any) -> None:
        self._connections.pop(request, None)
        self._free.release()


class _Handler(MetricsHandler):
    """Handles one request; prometheus_client formats the metrics."""

    server: MetricsServer

    def setup(self) -> None:
        self.request.settimeout(CLIENT_TIMEOUT_S)
        super().setup()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            super().do_GET()
        elif (probe := self.server.probes.get(path)) is not None:
            try:
                problem = probe()
            except LoopTimeout as error:
                problem = str(error)
            status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
            self._respond(status, problem or "ok")
        else:
            self._respond(HTTPStatus.NOT_FOUND, "there are /metrics, /livez and /readyz")

    def version_string(self) -> str:
        """Return the header Server, without the version of Python."""
        return "resnet50-server"

    def _respond(self, status: HTTPStatus, text: str) -> None:
        content = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _close_connection(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)
