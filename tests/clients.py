"""The two clients behind one face, so that a test holds for both."""

from __future__ import annotations

import asyncio
from typing import Any

from resnet50_client import AsyncClient, Client


class Caller:
    """Calls the methods of a `Client` (in a thread) or of an `AsyncClient`, awaited either way."""

    def __init__(self, kind: type, *arguments: Any, **options: Any) -> None:
        self.client = kind(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if isinstance(self.client, AsyncClient):
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(method, *arguments, **options)

        return call

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


KINDS = [Client, AsyncClient]
