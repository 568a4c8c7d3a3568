"""The HTTP port beside gRPC: `/metrics` for Prometheus, `/livez` and `/readyz` for supervisors.

It has threads of its own, so that it answers while the event loop is busy, and says so if that does
not answer at all. There is no secret behind it and nothing that could be changed.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from resnet50_server.runtime.worker_threads import name_thread

from .gauges import ask

# A loop that has not answered for so long is stuck.
LIVE_TIMEOUT_S = 5.0
# How long a client may send, or take, nothing.
CLIENT_TIMEOUT_S = 5.0
# Connections at once. One more, and the oldest is cut: whoever stalls makes room for whoever asks.
MAX_CONNECTIONS = 16
# So often is it looked whether the port is to be closed.
LOOK_S = 0.1


class MetricsPort:
    """Answers HTTP from the time it is made; made on the server's running event loop.

    Args:
        address: host:port; port 0 takes a free one.
        registry: What `/metrics` exports.
        dead: Says why the server is lost; None if it is not. Runs on the event loop.
        unready: Says why the server takes no images; None if it does. Runs on the event loop.

    Attributes:
        url: Where it listens.

    Raises:
        OSError: The address cannot be listened on.
    """

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        dead: Callable[[], str | None],
        unready: Callable[[], str | None],
    ) -> None:
        loop = asyncio.get_running_loop()
        host, _, port = address.rpartition(":")

        probes = {
            "/livez": partial(ask, loop, dead, LIVE_TIMEOUT_S),
            "/readyz": partial(ask, loop, unready, LIVE_TIMEOUT_S),
        }
        try:
            self._http = _Server(host.strip("[]"), int(port), _Handler.factory(registry), probes)
        except OSError as error:
            raise OSError(
                f"metrics_listen: cannot listen on {address}: {error.strerror or error}; stop the"
                " process that listens there, or name another address with --metrics-listen"
            ) from error
        self.url = f"http://{host}:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Listen no more, and cut what is open."""
        self._http.stopping = True
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        name_thread()
        self._http.serve()


class _Handler(MetricsHandler):
    """One request; prometheus_client writes the metrics in the format that is asked for."""

    timeout = CLIENT_TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            super().do_GET()
        elif (probe := self.server.probes.get(path)) is not None:
            try:
                problem = probe()
            except NoAnswer as error:
                problem = str(error)
            status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
            self._say(status, problem or "ok")
        else:
            self._say(HTTPStatus.NOT_FOUND, "there are /metrics, /livez and /readyz")

    def version_string(self) -> str:
        """Return what the header Server says: not which Python this is."""
        return "resnet50-server"

    def _say(self, status: HTTPStatus, text: str) -> None:
        content = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(TCPServer):
    """Gives each connection a thread, and never has more than `MAX_CONNECTIONS` of them.

    Args:
        host: A name, or an address of IPv4 or IPv6.
        port: 0 for a free one.
        handler: Handles a connection.
        probes: By their paths: each returns what is wrong, or None.
    """

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        host: str,
        port: int,
        handler: type[BaseHTTPRequestHandler],
        probes: Mapping[str, Callable[[], str | None]],
    ) -> None:
        self.probes = probes
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self.stopping = False
        self._open: OrderedDict[socket.socket, None] = OrderedDict()
        self._changed = threading.Condition()
        self._count = 0
        super().__init__((host, port), handler)

    def serve(self) -> None:
        """Serve until `stopping` is set."""
        self.timeout = LOOK_S
        with self:
            while not self.stopping:
                self.handle_request()
            with self._changed:
                for connection in self._open:
                    _cut(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread, once there is one to spare."""
        with self._changed:
            if not self._changed.wait_for(self._make_room, LIVE_TIMEOUT_S):
                self.shutdown_request(request)
                return
            self._open[request] = None
            self._count += 1
        threading.Thread(
            target=self._handle,
            args=(request, client_address),
            name=f"metrics-{self._count}",
            daemon=True,
        ).start()

    def _make_room(self) -> bool:
        """Return whether there is a thread to spare; if not, there will soon be."""
        if len(self._open) < MAX_CONNECTIONS:
            return True
        _cut(next(iter(self._open)))
        return False

    def _handle(self, request: Any, client_address: Any) -> None:
        name_thread()
        try:
            # Whoever hangs up in the middle is no fault of ours.
            with suppress(OSError):
                self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)
            with self._changed:
                del self._open[request]
                self._changed.notify()


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
