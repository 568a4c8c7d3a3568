"""The two clients behind one face, so that a test holds for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from resnet50_client import AsyncClient, Classification, Client
from resnet50_client.admin import AdminClient, AsyncAdminClient


class Caller:
    """Calls the methods of a `Client` (in a thread) or of an `AsyncClient`, awaited either way.

    Methods that only clients for administration have are called on one with the same arguments.
    """

    def __init__(self, kind: type, *arguments: Any, **options: Any) -> None:
        self.client = kind(*arguments, **options)
        admin = AsyncAdminClient if kind is AsyncClient else AdminClient
        self.admin = admin(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client if hasattr(self.client, name) else self.admin, name)
        if isinstance(self.client, AsyncClient):
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(method, *arguments, **options)

        return call

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the clients."""
        for client in (self.client, self.admin):
            if isinstance(client, (AsyncClient, AsyncAdminClient)):
                await client.close()
            else:
                await asyncio.to_thread(client.close)


KINDS = [Client, AsyncClient]


async def classify_once(client: Client | AsyncClient) -> Classification:
    """Classify an image with either client, and close the client."""
    if isinstance(client, AsyncClient):
        async with client:
            return await client.classify(b"image")
    with client:
        return client.classify(b"image")


_END = object()


async def outcomes(caller: Caller, frames: Any, **options: Any) -> AsyncGenerator:
    """Give the result or the error of each frame of `classify_stream`."""
    async with aclosing(items(caller, "classify_stream", frames, **options)) as answers:
        async for answer in answers:
            yield answer.error or answer.result


async def items(caller: Caller, name: str, *arguments: Any, **options: Any) -> AsyncGenerator:
    """Give what a streaming method gives, one item at a time; closing it closes that."""
    generator = getattr(caller.client, name)(*arguments, **options)
    if isinstance(caller.client, AsyncClient):
        async with aclosing(generator):
            async for item in generator:
                yield item
        return
    try:
        while (item := await asyncio.to_thread(next, generator, _END)) is not _END:
            yield item
    finally:
        await asyncio.to_thread(generator.close)
