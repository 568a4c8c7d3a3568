"""Files as Django, Starlette and FastAPI hand them to a view."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from starlette.datastructures import UploadFile

from resnet50_client import AsyncClient, Client
from resnet50_client.testing import FakeServer
from tests.support.pictures import encode, photo_like

JPEG = encode(photo_like(64, 48), "JPEG")


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


@contextlib.contextmanager
def upload(content: bytes = JPEG) -> Iterator[UploadFile]:
    """Give a file of a form, of the class that FastAPI gives, too."""
    with tempfile.SpooledTemporaryFile(max_size=2**20) as file:
        file.write(content)
        file.seek(0)
        yield UploadFile(cast("BinaryIO", file), filename="a.jpg")


def test_django_file_is_sent_as_its_content(server):
    file = SimpleUploadedFile("a.jpg", JPEG, "image/jpeg")
    with Client(server.address) as client:
        result = client.classify(file)
    assert result.source is file
    assert server.received[0].image == JPEG


async def test_upload_of_starlette_is_awaited(server):
    with upload() as file:
        async with AsyncClient(server.address) as client:
            result = await client.classify(file)
        assert result.source is file
    assert server.received[0].image == JPEG


async def test_large_upload_of_starlette_is_sent_in_chunks(server):
    content = JPEG + bytes(5 * 2**20)
    with upload(content) as file:
        async with AsyncClient(server.address) as client:
            await client.embed(file)
    assert server.received[0].method == "EmbedUpload"
    assert server.received[0].image == content


def test_upload_of_starlette_is_refused_by_the_blocking_client_with_advice(server):
    with Client(server.address) as client, upload() as file:
        with pytest.raises(TypeError, match=r"UploadFile is asynchronous; pass its `\.file`"):
            client.classify(cast("Any", file))
        client.classify(file.file)
    assert [one.image for one in server.received] == [JPEG]


async def test_upload_that_was_read_before_is_told_to_go_back(server):
    with upload() as file:
        await file.read()
        async with AsyncClient(server.address) as client:
            with pytest.raises(ValueError, match=r"seek\(0\)"):
                await client.classify(file)
            await file.seek(0)
            assert await client.classify(file)


def test_open_file_is_sent_from_its_position(server, tmp_path):
    path = tmp_path / "two.bin"
    path.write_bytes(b"head" + JPEG)
    with Client(server.address) as client, path.open("rb") as file, io.BytesIO(JPEG) as memory:
        file.seek(4)
        client.classify(file)
        client.classify(memory)
    assert [one.image for one in server.received] == [JPEG, JPEG]
