"""A server that records how calls reach it, and a client with one connection."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.e2e.proxies.balancers import Tls
from tests.e2e.proxies.callers import NotAsPromised
from tests.e2e.proxies.waiting import PATIENCE_S

SERVICE = "probe.Probe"
HEALTH = "resnet50.v1.InferenceService"
DETAILS = b"\x00\x01details of a status\xff"
MESSAGE = bytes(64 * 1024)
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A connection for each channel.
    ("grpc.use_local_subchannel_pool", 1),
]
# As the server's.
METADATA = [("grpc.max_metadata_size", 16384), ("grpc.absolute_max_metadata_size", 16384)]


class Probe:
    """A gRPC server of one call shape each, with gRPC's health service.

    Args:
        name: Its name, which Echo returns in its metadata.
        port: Where it listens.
        metrics: Where it answers /readyz.

    Attributes:
        metadata: Of the last Echo.
        left_s: Time that the last Echo had left, in seconds.
        waiting: Calls of Wait in progress.
        ended: Number of calls of Wait that were cancelled.
        sent: Messages that Flood has sent.
        open: Whether Drain reads its messages.
    """

    def __init__(self, name: str, port: int, metrics: int) -> None:
        self.name = name
        self.metadata: dict[str, str | bytes] = {}
        self.left_s: float | None = None
        self.waiting = self.ended = self.sent = 0
        self.open = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(64), options=[*OPTIONS, *METADATA])
        servicer = health.HealthServicer()
        servicer.set(HEALTH, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(self._echo),
            "Refuse": grpc.unary_unary_rpc_method_handler(self._refuse),
            "Wait": grpc.unary_unary_rpc_method_handler(self._wait),
            "Drain": grpc.stream_unary_rpc_method_handler(self._drain),
            "Flood": grpc.unary_stream_rpc_method_handler(self._flood),
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, handlers)]
        )
        if self._server.add_insecure_port(f"127.0.0.1:{port}") != port:
            raise NotAsPromised(f"port {port} is in use")
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", metrics), _Ready)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve."""
        self._server.start()
        thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.open.set()
            self._server.stop(None).wait()
            self._http.shutdown()
            self._http.server_close()

    def _echo(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        self.metadata = dict(context.invocation_metadata())
        self.left_s = context.time_remaining()
        context.set_trailing_metadata([("x-server", self.name)])
        return message

    def _refuse(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(
            [("grpc-status-details-bin", DETAILS), ("x-request-id", "of-the-server")]
        )
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "refused: 100% of it, é")
        raise AssertionError

    def _wait(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        over = threading.Event()
        context.add_callback(over.set)
        self.waiting += 1
        over.wait(PATIENCE_S)
        self.waiting -= 1
        self.ended += 1
        return b""

    def _drain(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        self.waiting += 1
        self.open.wait(PATIENCE_S)
        self.waiting -= 1
        return str(sum(map(len, messages))).encode()

    def _flood(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in range(int(message)):
            self.sent += 1
            yield MESSAGE


class _Ready(http.server.BaseHTTPRequestHandler):
    """Answers each request with 200."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Client:
    """A client with one connection.

    Args:
        address: Of the load balancer.
        tls: With TLS; None for plaintext.
    """

    def __init__(self, address: str, tls: Tls | None) -> None:
        if tls is None:
            self.channel = grpc.insecure_channel(address, OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(tls.ca)
            self.channel = grpc.secure_channel(address, credentials, OPTIONS)
        self.echo = self._method("unary_unary", "Echo")
        self.refuse = self._method("unary_unary", "Refuse")
        self.wait = self._method("unary_unary", "Wait")
        self.drain = self._method("stream_unary", "Drain")
        self.flood = self._method("unary_stream", "Flood")

    def _method(self, kind: str, name: str) -> Any:
        return getattr(self.channel, kind)(f"/{SERVICE}/{name}")
