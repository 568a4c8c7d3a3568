"""The gRPC servers: channels, choice of a server, calls."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import grpc

from resnet50_client._aio_status import keep_status

from .metrics import Metrics
from .problems import Problem, problem_of
from .settings import Settings

Metadata: TypeAlias = tuple[tuple[str, str], ...]

HEALTH_METHOD = "/grpc.health.v1.Health/Check"
# A HealthCheckResponse with SERVING, and the empty request for the whole server.
_SERVING, _WHOLE_SERVER = b"\x08\x01", b""
HEALTH_TIMEOUT_S = 2.0
# A server that has gone is asked again within this time.
MAX_RECONNECT_MS = 1000


class Server:
    """One gRPC server.

    Args:
        address: Its address.
        channel: To it.
        metrics: Counts its calls.

    Attributes:
        channel: As given.
    """

    def __init__(self, address: str, channel: grpc.aio.Channel, metrics: Metrics) -> None:
        self.channel = channel
        self._address = address
        self._metrics = metrics

    def count(self, code: grpc.StatusCode) -> None:
        """Count a call that has ended."""
        self._metrics.call_ended(self._address, code.name)

    def stream(self, method: str, metadata: Metadata) -> Any:
        """Open a stream of requests and responses, of bytes; its caller counts it."""
        return keep_status(self.channel.stream_stream(method)(metadata=metadata))

    def is_broken(self) -> bool:
        """Return whether there is no connection to it; one is tried if there is none."""
        state = self.channel.get_state(try_to_connect=True)
        return state is grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Upstream:
    """Channels to servers. Calls go to one after the other, and to the next if one is unavailable.

    Messages are bytes: the gateway serializes those that it makes, and forwards others unparsed.

    Args:
        settings: Addresses and TLS.
        metrics: Counts calls.

    Raises:
        OSError: A file of TLS cannot be read.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        credentials = _credentials(settings)
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
            ("grpc.initial_reconnect_backoff_ms", MAX_RECONNECT_MS // 10),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.primary_user_agent", "resnet50-gateway"),
            ("grpc.enable_retries", 0),
            # Of an address with several servers.
            ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        ]
        if settings.server_name is not None:
            options.append(("grpc.ssl_target_name_override", settings.server_name))
            options.append(("grpc.default_authority", settings.server_name))
        self._servers = [
            Server(
                address,
                grpc.aio.insecure_channel(address, options)
                if credentials is None or address.startswith("unix:")
                else grpc.aio.secure_channel(address, credentials, options),
                metrics,
            )
            for address in settings.server
        ]
        self._turns = itertools.count()

    async def close(self) -> None:
        """Close the channels; calls in flight are cancelled."""
        for server in self._servers:
            await server.channel.close(0)

    async def call(
        self,
        method: str,
        request: bytes,
        metadata: Metadata,
        timeout_s: float,
        *,
        repeatable: bool = True,
        on_call: Callable[[Any], None] | None = None,
    ) -> bytes:
        """Return the response of a method with one request and one response.

        Args:
            method: Its path, "/package.Service/Method".
            request: The serialized request.
            metadata: Of the call.
            timeout_s: Deadline of all attempts, in seconds from now.
            repeatable: Whether it may be sent to another server if one is unavailable.
            on_call: Gets each call that is made, so that it can be cancelled.

        Raises:
            Problem: The call failed.
        """

        def start(channel: grpc.aio.Channel, left_s: float) -> Any:
            method_of: Any = channel.unary_unary(method)
            return method_of(request, metadata=metadata, timeout=left_s)

        return await self._first_answer(start, timeout_s, repeatable, on_call)

    async def upload(
        self,
        method: str,
        messages: Sequence[bytes],
        metadata: Metadata,
        timeout_s: float,
        *,
        on_call: Callable[[Any], None] | None = None,
    ) -> bytes:
        """Return the response of a method with several requests and one response; see `call`."""

        def start(channel: grpc.aio.Channel, left_s: float) -> Any:
            return keep_status(channel.stream_unary(method)(metadata=metadata, timeout=left_s))

        async def write(call: Any) -> None:
            # A server may refuse an upload before all of it is sent; its answer has the reason.
            with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                for message in messages:
                    await call.write(message)
                await call.done_writing()

        return await self._first_answer(start, timeout_s, True, on_call, write)

    def next_server(self) -> Server:
        """Return a server for a stream, another one each time."""
        return self._in_order()[0]

    async def serving(self) -> bool:
        """Return whether one of the servers reports that it is serving."""
        for server in self._in_order():
            try:
                call: Any = server.channel.unary_unary(HEALTH_METHOD)
                if await call(_WHOLE_SERVER, timeout=HEALTH_TIMEOUT_S) == _SERVING:
                    return True
            except grpc.aio.AioRpcError:
                continue
        return False

    async def _first_answer(
        self,
        start: Callable[[grpc.aio.Channel, float], Any],
        timeout_s: float,
        repeatable: bool,
        on_call: Callable[[Any], None] | None,
        write: Callable[[Any], Awaitable[None]] | None = None,
    ) -> bytes:
        servers, ends_at = self._in_order(), time.monotonic() + timeout_s
        for left, server in zip(reversed(range(len(servers))), servers, strict=True):
            call: Any = start(server.channel, max(0.0, ends_at - time.monotonic()))
            if on_call is not None:
                on_call(call)
            try:
                if write is not None:
                    await write(call)
                response: bytes = await call
                server.count(grpc.StatusCode.OK)
                return response
            except grpc.aio.AioRpcError as error:
                code = error.code()
                server.count(code)
                if code is grpc.StatusCode.UNAVAILABLE and repeatable and left:
                    continue
                raise problem_of(error) from None
            except asyncio.CancelledError:
                server.count(grpc.StatusCode.CANCELLED)
                raise
        raise Problem("UNAVAILABLE", "no server is configured; set --server")

    def _in_order(self) -> list[Server]:
        """Return the servers, another one first each time, those without a connection last."""
        first = next(self._turns) % len(self._servers)
        servers = self._servers[first:] + self._servers[:first]
        if len(servers) == 1:
            return servers
        return sorted(servers, key=Server.is_broken)


def _credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    if not settings.tls_to_servers:
        return None

    def content(path: Any) -> bytes | None:
        return None if path is None else path.read_bytes()

    return grpc.ssl_channel_credentials(
        content(settings.server_ca), content(settings.server_key), content(settings.server_cert)
    )
