"""The asyncio client as notebooks and applications with time limits use it."""

from __future__ import annotations

import ast
import asyncio
import inspect
from typing import Any

import pytest

from resnet50_client import AsyncClient
from resnet50_client.testing import FakeServer

WAITING_S = 3600.0
LIMIT_S = 0.2


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


class Notebook:
    """Cells that share variables and one event loop, compiled as IPython compiles them."""

    def __init__(self, **variables: Any) -> None:
        self.variables = variables
        self.loop = asyncio.new_event_loop()

    def run(self, cell: str) -> None:
        code = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            self.loop.run_until_complete(eval(code, self.variables))
        else:
            self.loop.call_soon(eval, code, self.variables)  # the loop runs during each cell
            self.loop.run_until_complete(asyncio.sleep(0))


def test_cells_of_a_notebook_share_clients(server):
    notebook = Notebook(address=server.address)
    notebook.run("from resnet50_client import AsyncClient, Client")
    notebook.run("client, blocking = AsyncClient(address), Client(address)")
    notebook.run("first = await client.classify(b'1')")
    notebook.run("second = [result async for result in client.classify_many([b'1', b'2'])]")
    notebook.run("third = blocking.classify(b'1')")
    notebook.run("fourth = list(blocking.classify_many([b'1']))")
    notebook.run("blocking.close(); await client.close()")
    results = notebook.variables
    labels = [results["first"].top.label, results["third"].top.label]
    labels += [results["second"][0].top.label, results["fourth"][0].top.label]
    assert len(set(labels)) == 1
    assert "<table" in results["first"]._repr_html_()
    notebook.loop.close()


def test_each_asyncio_run_may_have_its_client(server):
    async def cell() -> str:
        async with AsyncClient(server.address) as client:
            return (await client.classify(b"1")).top.label

    assert asyncio.run(cell()) == asyncio.run(cell())


def test_client_of_an_earlier_asyncio_run_says_so(server):
    client = AsyncClient(server.address)

    async def cell() -> None:
        await client.classify(b"1")

    asyncio.run(cell())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(cell())


async def classify(client: AsyncClient) -> None:
    await client.classify(b"1")


async def stream(client: AsyncClient) -> None:
    async with client.classify_stream([b"1", b"2"]) as answers:
        async for _ in answers:
            pass


async def bulk(client: AsyncClient) -> None:
    async for _ in client.classify_many([b"1", b"2"]):
        pass


async def batch(client: AsyncClient) -> None:
    await client.embed_batch([b"1", b"2"])


@pytest.mark.parametrize("call", [classify, stream, bulk, batch])
async def test_time_limit_of_asyncio_cancels_a_call(server, call):
    server.delay_s = WAITING_S
    async with AsyncClient(server.address, timeout_s=60) as client:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(call(client), LIMIT_S)
        server.delay_s = 0.0
        assert (await client.classify(b"3")).top  # the client is as good as before


async def test_cancelled_group_of_calls_leaves_the_client_usable(server):
    server.delay_s = WAITING_S
    async with AsyncClient(server.address, timeout_s=60) as client:
        tasks = [asyncio.create_task(client.classify(b"1")) for _ in range(4)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 4
        server.delay_s = 0.0
        assert (await client.classify(b"2")).top
