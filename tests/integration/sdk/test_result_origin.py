"""The image of a result or an error, and files that are read asynchronously."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import weakref
from pathlib import Path

import numpy as np
import pytest

from resnet50_client import (
    AsyncClient,
    CallObserver,
    Client,
    InvalidImageError,
    RawImage,
    UnavailableError,
)
from resnet50_client.testing import FakeServer
from tests.support.clients import Caller


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


async def test_result_has_the_image_that_was_passed(kind, server, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"content")
    images = (path, str(path), b"content", io.BytesIO(b"content"), np.zeros((4, 4), np.uint8))
    async with Caller(kind, server.address) as client:
        for image in images:
            result = await client.classify(image, include_embedding=True)
            assert result.source is image
            assert result.embedding.source is image
        assert (await client.embed(path)).source is path


async def test_error_has_the_image_that_was_passed(kind, server):
    server.script(InvalidImageError("image: is broken"), UnavailableError("is busy"))
    async with Caller(kind, server.address, timeout_s=60) as client:
        with pytest.raises(InvalidImageError) as refused:
            await client.classify(image := b"content")
        assert refused.value.source is image
        with pytest.raises(InvalidImageError) as local:
            await client.embed(array := np.zeros((4, 4, 7), np.uint8))
        assert local.value.source is array


@pytest.mark.parametrize("observers", [(), (CallObserver(),)], ids=["unobserved", "observed"])
async def test_image_is_released_with_its_error(kind, server, observers):
    """At once, rather than by the garbage collector, which does not see how large an image is."""
    server.script(InvalidImageError("image: is broken"))
    images = [RawImage(np.zeros((4, 4, 3), np.uint8), "RGB")]
    alive = weakref.ref(images[0])

    def failing(client: Client) -> None:
        with contextlib.suppress(InvalidImageError):
            client.classify(images[0])

    client = kind(server.address, observers=observers)
    gc.collect()
    gc.disable()
    try:
        if isinstance(client, AsyncClient):
            with contextlib.suppress(InvalidImageError):
                await client.classify(images[0])
            await client.close()
        else:
            await asyncio.to_thread(failing, client)
            client.close()
        images.clear()
        assert alive() is None
    finally:
        gc.enable()


async def test_error_without_an_image_has_none(kind, server):
    async with Caller(kind, server.address) as client:
        with pytest.raises(LookupError) as missing:
            await client.get_variant("cats")
    assert missing.value.source is None


class Upload:
    """A file as FastAPI and Starlette give it."""

    def __init__(self, content: bytes) -> None:
        self.file = io.BytesIO(content)

    async def read(self, size: int = -1) -> bytes:
        await asyncio.sleep(0)
        return self.file.read(size)


async def test_asyncio_client_awaits_files_that_are_read_asynchronously(server):
    async with AsyncClient(server.address) as client:
        upload = Upload(b"content")
        result = await client.classify(upload)
        assert result.source is upload
        large = Upload(bytes(5 * 2**20))
        assert (await client.embed(large)).source is large
    assert [len(one.image) for one in server.received] == [7, 5 * 2**20]


async def test_streams_and_lists_take_files_that_are_read_asynchronously(server):
    uploads = [Upload(b"a"), Upload(b"b"), Upload(b"")]
    async with AsyncClient(server.address, timeout_s=60) as client:
        answers = [answer async for answer in client.classify_stream(uploads)]
        again = [Upload(b"a"), Upload(b"b")]
        results = [result async for result in client.embed_many(again)]
    assert [answer.source for answer in answers] == uploads
    assert [type(answer.error) for answer in answers] == [type(None)] * 2 + [InvalidImageError]
    assert answers[2].error.source is uploads[2]
    assert [result.source for result in results] == again


def test_blocking_client_names_the_file_inside_an_upload(server):
    with Client(server.address) as client:
        with pytest.raises(TypeError, match=r"pass its `\.file`"):
            client.classify(Upload(b"content"))
        assert client.classify(Upload(b"content").file)
    assert len(server.received) == 1


def test_missing_file_is_the_builtin_error(server):
    with Client(server.address) as client, pytest.raises(FileNotFoundError):
        client.classify(Path("no/such/file.jpg"))
