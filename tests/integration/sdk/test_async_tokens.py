"""Tokens from coroutine functions: for asyncio clients only, awaited for each attempt."""

from __future__ import annotations

import asyncio
import functools

import pytest

from resnet50_client import AsyncClient, Client, DeadlineExceededError, UnavailableError
from resnet50_client.testing import FakeServer
from tests.support.clients import Caller, items


class Provider:
    """Returns a token with a number that grows."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> str:
        await asyncio.sleep(0)
        self.count += 1
        return f"token-{self.count}"


async def named(name: str) -> str:
    return name


async def never() -> str:
    await asyncio.Event().wait()
    return ""


def sent(server: FakeServer) -> list[str]:
    return [one.metadata["authorization"] for one in server.received]


async def test_token_is_awaited_for_each_attempt(server):
    server.script(UnavailableError("restarting"))
    async with Caller(AsyncClient, server.address, token=Provider()) as client:
        await client.classify(b"image")
        _ = [one async for one in items(client, "embed_stream", [b"image"])]
        _ = [one async for one in items(client, "embed_many", [b"image"])]
    assert sent(server) == [f"Bearer token-{number}" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("token", [functools.partial(named, "a"), lambda: named("a")])
async def test_every_function_that_returns_an_awaitable_will_do(server, token):
    async with AsyncClient(server.address, token=token) as client:
        await client.classify(b"image")
    assert sent(server) == ["Bearer a"]


@pytest.mark.parametrize("token", [Provider(), never, functools.partial(named, "a")])
def test_coroutine_function_is_refused_by_the_blocking_client(token):
    with pytest.raises(TypeError, match="token: is a coroutine function, which needs AsyncClient"):
        Client(token=token)


def test_function_that_returns_an_awaitable_is_refused_at_the_call(server):
    with (
        Client(server.address, token=lambda: named("a")) as client,
        pytest.raises(TypeError, match="which needs AsyncClient"),
    ):
        client.classify(b"image")
    assert server.received == []


async def test_token_that_does_not_come_ends_by_deadline(server):
    async with AsyncClient(server.address, token=never, timeout_s=0.05) as client:
        with pytest.raises(DeadlineExceededError, match=r"^token: the coroutine function did not"):
            await client.classify(b"image")
        with pytest.raises(DeadlineExceededError, match=r"^token: the coroutine function did not"):
            _ = [one async for one in client.classify_stream([b"image"])]
    assert server.received == []


async def test_timeout_within_a_coroutine_function_is_its_own_error(server):
    async def login() -> str:
        raise TimeoutError("the identity provider is slow")

    async with AsyncClient(server.address, token=login, timeout_s=1e6) as client:
        with pytest.raises(TimeoutError, match="the identity provider is slow"):
            await client.classify(b"image")


async def test_wrong_token_of_a_coroutine_function_is_not_shown(server):
    async with AsyncClient(server.address, token=functools.partial(named, "se cret")) as client:
        with pytest.raises(ValueError, match=r"^token: must be visible ASCII") as raised:
            await client.classify(b"image")
    assert "se cret" not in str(raised.value)
