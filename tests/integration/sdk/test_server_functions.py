"""Clients whose servers a function returns: servers come and go, and no call fails for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import threading
from collections.abc import Iterator

import grpc
import pytest

from resnet50.v1 import inference_pb2, inference_pb2_grpc, result_pb2
from resnet50_client import (
    AsyncClient,
    CallCancelledError,
    Client,
    RetryPolicy,
    UnavailableError,
)
from resnet50_client import _resolver as resolver_module
from tests.support.clients import Caller, items
from tests.support.serving import until

PNG = b"anything: the server does not look"


class Named(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with its address, once its gate is open."""

    def __init__(self) -> None:
        self.address = ""
        self.gate = threading.Event()
        self.gate.set()
        self.calls = 0

    def Classify(self, request, context):
        self.calls += 1
        assert self.gate.wait(60)
        found = result_pb2.Classification()
        variant = result_pb2.VariantRef(name=self.address)
        return inference_pb2.ClassifyResponse(classification=found, variant=variant)


class Servers:
    """Servers, and the function that returns the addresses of those that are listed."""

    def __init__(self) -> None:
        self.listed: list[str] = []
        self.calls = 0
        self._servers: dict[str, grpc.Server] = {}

    def __call__(self) -> list[str]:
        self.calls += 1
        return list(self.listed)

    def start(self) -> Named:
        named = Named()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(named, server)
        named.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        self._servers[named.address] = server
        self.listed.append(named.address)
        return named

    def unlist(self, named: Named) -> None:
        self.listed.remove(named.address)

    def stop(self, named: Named) -> None:
        """Stop a server once its calls are completed."""
        self._servers.pop(named.address).stop(60).wait()

    def close(self) -> None:
        for server in self._servers.values():
            server.stop(None).wait()


@pytest.fixture
def servers(monkeypatch) -> Iterator[Servers]:
    monkeypatch.setattr(resolver_module, "AGAIN_S", 0.02)
    monkeypatch.setattr(resolver_module, "POLL_S", 0.02)
    servers = Servers()
    yield servers
    servers.close()


async def test_no_call_fails_while_servers_come_and_go(kind, servers):
    answered: list[str] = []
    stopping = asyncio.Event()

    async def call_repeatedly(client: Caller) -> None:
        while not stopping.is_set():
            answered.append((await client.classify(PNG, timeout_s=60)).variant.name)

    first = servers.start()
    async with Caller(kind, servers) as client:
        callers = [asyncio.create_task(call_repeatedly(client)) for _ in range(4)]
        await until(lambda: first.calls > 10)
        others = [servers.start() for _ in range(2)]
        await until(lambda: all(one.calls > 10 for one in others))
        for gone in (first, others[0]):
            servers.unlist(gone)
            await asyncio.to_thread(servers.stop, gone)
        seen = len(answered)
        # Those in flight at the end of a server are recorded a moment later.
        await until(lambda: len(answered) > seen + 8 and set(answered[-4:]) == {others[1].address})
        stopping.set()
        await asyncio.gather(*callers)


async def test_call_in_flight_stays_at_a_server_that_is_unlisted(kind, servers):
    first = servers.start()
    first.gate.clear()
    async with Caller(kind, servers, timeout_s=60) as client:
        waiting = asyncio.ensure_future(client.classify(PNG))
        await until(lambda: first.calls)
        second = servers.start()
        servers.unlist(first)
        others = []
        while not second.calls:  # calls to the first one wait, too
            others.append(asyncio.ensure_future(client.classify(PNG)))
            await asyncio.sleep(0.02)
        first.gate.set()
        assert (await waiting).variant.name == first.address
        await asyncio.gather(*others)


async def test_calls_wait_for_the_first_address(kind, servers):
    async with Caller(kind, servers, timeout_s=60) as client:
        waiting = asyncio.ensure_future(client.classify(PNG))
        named = servers.start()
        assert (await waiting).variant.name == named.address


@pytest.mark.parametrize("name", ["classify_many", "classify_stream"])
async def test_error_names_the_function_that_returns_no_address(kind, servers, name):
    async with Caller(kind, servers, timeout_s=0.05, retry=RetryPolicy(attempts=1)) as client:
        with pytest.raises(UnavailableError, match=r"Servers\(\): the function returned \[\]"):
            await client.classify(PNG)
        with pytest.raises(UnavailableError, match=r"Servers\(\): the function returned \[\]"):
            [one async for one in items(client, name, [PNG])]


@pytest.mark.parametrize("name", ["classify_many", "classify_stream"])
async def test_results_closed_before_the_first_address_read_nothing(kind, servers, name):
    read: list[bytes] = []

    def images() -> Iterator[bytes]:
        while True:
            read.append(PNG)
            yield PNG

    before = asyncio.all_tasks()
    async with Caller(kind, servers, timeout_s=1e6) as client:
        results = getattr(client.client, name)(images())
        if kind is AsyncClient:
            waiting = asyncio.ensure_future(anext(results))
            await until(lambda: servers.calls)
            await asyncio.wait_for(results.aclose(), 60)
        else:
            waiting = asyncio.ensure_future(asyncio.to_thread(next, results))
            await until(lambda: servers.calls)
            await asyncio.wait_for(asyncio.to_thread(results.close), 60)
        with pytest.raises(CallCancelledError):
            await asyncio.wait_for(waiting, 60)
        servers.start()
        await client.classify(PNG)
    assert asyncio.all_tasks() == before
    assert read == []


def test_client_of_a_function_is_pickled_with_it():
    copy = pickle.loads(pickle.dumps(Client(addresses)))
    assert repr(copy) == "Client('addresses()')"


def addresses() -> str:
    return "localhost:1"
