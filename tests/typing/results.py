"""Results as users' code has them; checked by type checkers, not run."""

from __future__ import annotations

import os
from typing import Any, Literal

from typing_extensions import assert_type

from resnet50_client import AsyncClient, Category, Classification, Client, Embedding, Resnet50Error
from resnet50_client.types import HealthStatus, LoadingStage, Variant, VariantState


def categories(client: Client, path: os.PathLike[str]) -> None:
    result = client.classify(path)
    assert_type(result, Classification)
    assert_type(result[0], Category)
    assert_type(result[:3], tuple[Category, ...])
    assert_type([one.label for one in result], list[str])
    assert_type(len(result), int)
    assert_type(result.request_id, str | None)
    assert_type(result.to_dict(), dict[str, Any])


def vectors(client: Client, content: bytes) -> None:
    result = client.embed(content, dtype="float16")
    assert_type(result, Embedding)
    assert_type(list(result), list[float])
    vector = result.vector
    vector /= 2.0


def states(client: Client) -> None:
    variant = client.get_variant()
    assert_type(variant, Variant)
    assert_type(variant.state, VariantState)
    assert_type(variant.digest, str | None)
    if variant.loading is not None:
        assert_type(variant.loading.stage, LoadingStage)
    status: HealthStatus = client.health()
    serving: Literal["SERVING"] = "SERVING"
    if status != serving:
        raise ConnectionError(status)


def errors(client: Client, path: str) -> tuple[str | None, str | None]:
    try:
        client.classify(path)
    except Resnet50Error as error:
        return error.code, error.request_id
    return None, None


class Upload:
    """A file that is read asynchronously, e.g. of FastAPI."""

    async def read(self, size: int = -1) -> bytes:
        """Return its content."""
        return b""


async def upload(client: AsyncClient) -> None:
    assert_type(await client.classify(Upload()), Classification)
