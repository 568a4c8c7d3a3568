"""Types of bulk calls, checked by mypy --strict; never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

from resnet50_client import AsyncClient, Classification, Client, Embedding, EmbeddingBatch


def blocking(client: Client, paths: list[Path], frames: Iterator[NDArray[np.uint8]]) -> None:
    for classified in client.classify_many(paths):
        assert_type(classified, Classification)
    for returned in client.classify_many(frames, return_exceptions=True, ordered=False):
        assert_type(returned, Classification | Exception)
    for embedded in client.embed_many([b"image", "path"], max_in_flight=4):
        assert_type(embedded, Embedding)
    for either in client.embed_many(frames, return_exceptions=True):
        assert_type(either, Embedding | Exception)
    assert_type(client.embed_batch(paths), EmbeddingBatch)
    with client.classify_many(paths) as results:
        assert_type(next(results), Classification)
        results.close()


def keyed(client: Client, by_name: dict[str, Path], rows: Iterator[tuple[int, bytes]]) -> None:
    for name, classified in client.classify_many(by_name, keyed=True):
        assert_type(name, str)
        assert_type(classified, Classification)
    for row, embedded in client.embed_many(rows, keyed=True, return_exceptions=True):
        assert_type(row, int)
        assert_type(embedded, Embedding | Exception)


async def asyncio(
    client: AsyncClient, paths: list[Path], rows: AsyncIterator[tuple[int, bytes]]
) -> None:
    async for classified in client.classify_many(paths):
        assert_type(classified, Classification)
    async for row, embedded in client.embed_many(rows, keyed=True, return_exceptions=True):
        assert_type(row, int)
        assert_type(embedded, Embedding | Exception)
    assert_type(await client.embed_batch(paths), EmbeddingBatch)
    async with client.embed_many(paths) as results:
        assert_type(await anext(results), Embedding)
        await results.aclose()
