"""Lists of servers by name: found late, found again, and never in the way of anything else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading

import grpc
import pytest

import resnet50_client
from resnet50.v1 import inference_pb2, inference_pb2_grpc, result_pb2
from resnet50_client import RetryPolicy
from resnet50_client import _channel_config as channel_config
from resnet50_client import _resolver as resolver_module
from tests.support.clients import Caller, items
from tests.support.serving import until, until_result

PNG = b"anything: the server does not look"
POLICY = RetryPolicy(initial_backoff_s=0.02, max_backoff_s=0.1)


class Named(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with its name."""

    def __init__(self, name: str) -> None:
        self._variant = result_pb2.VariantRef(name=name)

    def Classify(self, request, context):
        found = result_pb2.Classification()
        return inference_pb2.ClassifyResponse(classification=found, variant=self._variant)

    def ClassifyStream(self, requests, context):
        next(requests)
        for request in requests:
            yield inference_pb2.ClassifyStreamResponse(
                frame_id=request.frame.frame_id,
                classification=result_pb2.Classification(),
                variant=self._variant,
            )


class Servers:
    """Servers on addresses of this machine, all on one port, and the names for them.

    Attributes:
        hosts: The addresses of each name.
        port: Of all servers.
        asked_by: The threads that looked a name up.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.hosts: dict[str, list[str]] = {}
        self.port = 0
        self.asked_by: list[threading.Thread] = []

    def start(self, ip: str) -> grpc.Server:
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(Named(ip), server)
        host = f"[{ip}]" if ":" in ip else ip
        self.port = server.add_insecure_port(f"{host}:{self.port}")
        server.start()
        self._stack.callback(lambda: server.stop(None).wait())
        return server

    def getaddrinfo(self, host, port, *arguments, **options):
        self.asked_by.append(threading.current_thread())
        if host not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, 1, 6, "", (ip, port))
            for ip in self.hosts[host]
        ]


@pytest.fixture
def servers(monkeypatch):
    with contextlib.ExitStack() as stack:
        servers = Servers(stack)
        monkeypatch.setattr(socket, "getaddrinfo", servers.getaddrinfo)
        monkeypatch.setattr(resolver_module, "AGAIN_S", 0.0)
        yield servers


async def seen(client, count: int = 12) -> set[str]:
    return {(await client.classify(PNG)).variant.name for _ in range(count)}


async def test_names_are_resolved_at_first_call_in_their_own_thread(kind, servers):
    for ip in ("127.0.0.1", "127.0.0.2"):
        servers.start(ip)
    servers.hosts = {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.2"]}
    names = [f"{host}:{servers.port}" for host in servers.hosts]
    async with Caller(kind, names) as client:
        assert servers.asked_by == []
        await client.classify(PNG)
        assert {thread.name for thread in servers.asked_by} == {"resolve names"}
        while await seen(client) != {"127.0.0.1", "127.0.0.2"}:
            pass  # the second connection is being made


async def test_stream_looks_names_up_at_its_first_item(kind, servers):
    """In both clients: neither their constructors nor the call that returns a stream wait."""
    servers.start("127.0.0.1")
    servers.hosts = {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]}
    names = [f"{host}:{servers.port}" for host in servers.hosts]
    async with Caller(kind, names) as client:
        stream = client.client.classify_stream([PNG])
        assert servers.asked_by == []
        if isinstance(client.client, resnet50_client.AsyncClient):
            answers = [answer async for answer in stream]
        else:
            answers = await asyncio.to_thread(list, stream)
        assert [answer.result.variant.name for answer in answers] == ["127.0.0.1"]
        assert servers.asked_by != []


async def test_ipv6_only_name_is_called_beside_an_ipv4_only_one(kind, servers):
    for ip in ("127.0.0.1", "127.0.0.2"):
        servers.start(ip)
    # An IPv6 address that is there on machines without IPv6 as well.
    servers.hosts = {"a.test": ["127.0.0.1"], "b.test": ["::ffff:127.0.0.2"]}
    names = [f"{host}:{servers.port}" for host in servers.hosts]
    async with Caller(kind, names) as client:
        while await seen(client) != {"127.0.0.1", "127.0.0.2"}:
            pass


async def test_server_that_moves_behind_its_name_is_found_again(kind, servers):
    first = servers.start("127.0.0.1")
    servers.hosts = {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]}
    names = [f"{host}:{servers.port}" for host in servers.hosts]
    async with Caller(kind, names, retry=POLICY) as client:
        assert await seen(client, 1) == {"127.0.0.1"}
        first.stop(None).wait()
        servers.start("127.0.0.2")
        servers.hosts = {"a.test": ["127.0.0.2"], "b.test": ["127.0.0.2"]}
        assert await seen(client, 1) == {"127.0.0.2"}


@contextlib.contextmanager
def black_hole(ip: str, port: int):
    """Let connection attempts to an address hang, as behind a firewall that drops packets."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, port))
        listener.listen(0)
        for _ in range(4):  # the queue of the listener is full: further SYNs are dropped
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((ip, port))
        yield


async def test_server_that_moved_is_found_while_its_old_address_hangs(kind, servers, monkeypatch):
    # Linux applies the keepalive's TCP_USER_TIMEOUT to connecting, too; other systems do not.
    monkeypatch.setattr(channel_config, "KEEPALIVE_TIMEOUT_S", 60)
    servers.start("127.0.0.1")
    servers.hosts = {"a.test": ["127.0.0.3"], "b.test": ["127.0.0.3"]}
    names = [f"{host}:{servers.port}" for host in servers.hosts]
    with black_hole("127.0.0.3", servers.port):
        # Shorter than gRPC's own time limit for connecting, 20 s.
        async with Caller(kind, names, retry=POLICY, timeout_s=18.0) as client:
            call = asyncio.ensure_future(client.classify(PNG))
            await until(lambda: servers.asked_by)
            servers.hosts = {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]}
            assert (await call).variant.name == "127.0.0.1"


async def test_stream_goes_on_at_a_server_that_has_moved(kind, servers):
    first = servers.start("127.0.0.1")
    servers.hosts = {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]}
    names = [f"{host}:{servers.port}" for host in servers.hosts]

    def images():
        for number in range(8):
            if number == 4:
                first.stop(None).wait()
                servers.start("127.0.0.2")
                servers.hosts = {"a.test": ["127.0.0.2"], "b.test": ["127.0.0.2"]}
            yield PNG

    async with Caller(kind, names, retry=POLICY) as client:
        answers = [one async for one in items(client, "classify_stream", images(), window=1)]
    assert [one.frame_id for one in answers] == list(range(8))
    assert [one.result.variant.name for one in answers] == ["127.0.0.1"] * 4 + ["127.0.0.2"] * 4


async def test_names_that_are_not_known_are_unavailable_until_they_are(kind, servers):
    servers.start("127.0.0.1")
    names = [f"{host}.invalid:{servers.port}" for host in ("a", "b")]
    once = RetryPolicy(attempts=1)
    async with Caller(kind, names, retry=once) as client:
        with pytest.raises(resnet50_client.UnavailableError, match=r"a\.invalid"):
            await client.classify(PNG)
        with pytest.raises(resnet50_client.UnavailableError):
            [one async for one in items(client, "classify_many", [PNG])]
        servers.hosts = {"a.invalid": ["127.0.0.1"], "b.invalid": ["127.0.0.1"]}

        async def found() -> set[str]:
            with contextlib.suppress(resnet50_client.UnavailableError):
                return await seen(client, 1)
            return set()

        # Names are looked up again within a second, and each call is made once.
        assert await until_result(found, bool) == {"127.0.0.1"}
