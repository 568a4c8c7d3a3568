"""Servers behind names that move to other addresses are found by every kind of call."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Any

import pytest

from resnet50_client import _resolver
from tests.support.clients import Caller, items
from tests.support.serving import until

IMAGE = b"image"


class Names:
    """A name service.

    Attributes:
        address: The IPv4 address of every name that ends with ".test".
        lookups: The names that were looked up.
    """

    def __init__(self) -> None:
        self.address = "127.0.0.2"  # where no server listens
        self.lookups: list[str] = []
        self._getaddrinfo = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(host, str) and host.endswith(".test"):
            name, host = host, self.address  # before a test sees that it was looked up
            self.lookups.append(name)
        return self._getaddrinfo(host, port, *arguments, **options)


@pytest.fixture
def names(monkeypatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    monkeypatch.setattr(_resolver, "REFRESH_S", math.inf)  # only calls that fail look again
    return names


@pytest.mark.parametrize("method", ["classify", "classify_stream", "classify_many"])
async def test_server_that_moves_is_found_by_a_call_that_fails(kind, method, server, names):
    port = server.address.rpartition(":")[2]
    servers = [f"one.test:{port}", f"two.test:{port}"]
    async with Caller(kind, servers, timeout_s=60) as caller:

        async def label() -> str:
            if method == "classify":
                return (await caller.classify(IMAGE)).top.label
            (found,) = [one async for one in items(caller, method, [IMAGE])]
            return getattr(found, "result", found).top.label

        calling = asyncio.ensure_future(label())
        await until(lambda: len(names.lookups) == 2)
        names.address = "127.0.0.1"
        assert await calling in ("cat", "dog")
    assert names.lookups[:2] == ["one.test", "two.test"]
