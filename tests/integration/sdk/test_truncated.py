"""A truncated image that the server accepts is flagged in every response, cached ones included."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from resnet50_client import InvalidImageError
from tests.support.clients import KINDS, Caller, items
from tests.support.commands import resnet50
from tests.support.pictures import encode, photo_like
from tests.support.serving import DECODING, server_processes

WHOLE = encode(photo_like(320, 240), "JPEG")
TRUNCATED = WHOLE[: len(WHOLE) // 2]
ENGINE = [f"--{name.replace('_', '-')}={value}" for name, value in DECODING.items()]


@pytest.fixture(scope="module")
def servers():
    """The addresses of a server that accepts truncated images, and of one that does not."""
    with server_processes() as start:
        accepting = start(
            *("--variants", "IMAGENET1K_V2", *ENGINE),
            *("--truncated-images", "accept", "--response-cache-bytes", str(16 * 2**20)),
        )
        refusing = start("--variants", "IMAGENET1K_V2", *ENGINE)
        yield accepting.wait_until_listening(), refusing.wait_until_listening()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
async def caller(request, servers):
    async with Caller(request.param, servers[0]) as caller:
        yield caller


async def test_every_response_about_a_truncated_image_says_so(caller):
    for expected, image in (((), WHOLE), (("truncated",), TRUNCATED)):
        for _ in range(2):  # the second one is cached
            found = await caller.classify(image, include_embedding=True)
            assert found.warnings == found.embedding.warnings == expected
            assert (await caller.embed(image)).warnings == expected
        assert found.timing.cache == "hit"


async def test_bulk_calls_flag_truncated_images_one_by_one(caller):
    images = [WHOLE, TRUNCATED, WHOLE]
    for name in ("classify_many", "embed_many"):
        found = [result.warnings async for result in items(caller, name, images)]
        assert found == [(), ("truncated",), ()]


async def test_upload_of_a_truncated_image_is_flagged(caller):
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3), dtype=np.uint8)
    large = encode(Image.fromarray(noise), "BMP")  # so that it is sent in chunks
    assert (await caller.classify(large[:-1000])).warnings == ("truncated",)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_truncated_image_is_refused_by_default(kind, servers):
    async with Caller(kind, servers[1]) as caller:
        with pytest.raises(InvalidImageError, match="truncated_images"):
            await caller.classify(TRUNCATED)


def test_commands_warn_of_truncated_images(servers, tmp_path):
    (tmp_path / "whole.jpg").write_bytes(WHOLE)
    (tmp_path / "part.jpg").write_bytes(TRUNCATED)
    text = resnet50("classify", tmp_path, "--server", servers[0])
    assert (text.returncode, len(text.stdout.splitlines())) == (0, 2)
    (line,) = text.stderr.decode().splitlines()
    assert "part.jpg: the image is truncated" in line
    as_json = resnet50("classify", tmp_path, "--json", "--server", servers[0])
    found = [json.loads(line)["warnings"] for line in as_json.stdout.splitlines()]
    assert found == [["truncated"], []]
    embedded = resnet50("embed", tmp_path, "--out", tmp_path / "v.npz", "--server", servers[0])
    assert embedded.returncode == 0
    assert b"part.jpg: the image is truncated" in embedded.stderr
