"""Preprocessing at the caller against a real server, with both clients."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from resnet50_client import (
    InvalidImageError,
    PreprocessedImage,
    TransformMismatchError,
)
from resnet50_client.testing import FakeServer
from tests.support import weights
from tests.support.administering import ADMIN, administered, describe
from tests.support.clients import KINDS, Caller, items
from tests.support.pictures import PHOTOS, encode, photo_like
from tests.support.serving import DECODING, computed, serving

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
SMALL = {"resize": 104, "crop": 96, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PHOTO = encode(photo_like(900, 600), "JPEG")
# Of a probability: pixels are at most a level apart.
TOLERANCE = 0.03


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(tmp_path_factory) -> AsyncIterator[str]:
    """A server with real weights, which have a small input."""
    folder = tmp_path_factory.mktemp("own")
    weights.custom_variant(folder, weights.calm(5, 12), 12, transform=SMALL)
    async with serving(variants=[f"own={folder}"], engine="torch", max_batch_size=4) as server:
        yield server.addresses[0]


@kinds
@pytest.mark.asyncio(loop_scope="module")
async def test_results_are_those_of_the_files(address, kind):
    async with Caller(kind, address) as client:
        preprocess = await client.preprocessor()
        for path in (*PHOTOS, io.BytesIO(PHOTO)):
            content = path.read_bytes() if hasattr(path, "read_bytes") else path.getvalue()
            image = preprocess(content)
            assert image.pixels.shape == (96, 96, 3)
            by_file = await client.classify(content, top_k=12)
            by_crop = await client.classify(image, top_k=12)
            expected = {one.label: one.probability for one in by_file}
            for one in by_crop:
                assert one.probability == pytest.approx(expected[one.label], abs=TOLERANCE)
            embedded = await client.embed(image)
            same = embedded.cosine(await client.embed(content))
            assert same > 0.99999
            other = await client.embed(preprocess(encode(photo_like(200, 300, 9))))
            assert embedded.cosine(other) < 0.9995  # the comparison tells images apart


@kinds
async def test_every_call_takes_preprocessed_images(kind):
    async with serving(**DECODING) as server, Caller(kind, server.addresses[0]) as client:
        batches = computed(server)
        preprocess = await client.preprocessor("IMAGENET1K_V2")
        image = preprocess(PHOTO)
        first = await client.classify(image, include_embedding=True)
        assert first.timing.decode_ms < 1000
        await client.embed(image)
        for name in ("classify_many", "embed_many"):
            assert len([one async for one in items(client, name, [image, PHOTO, image])]) == 3
        for name in ("classify_stream", "embed_stream"):
            answers = [one async for one in items(client, name, [image, PHOTO, image])]
            assert [answer.error for answer in answers] == [None] * 3
    seen = [one for batch in batches for one in batch]
    assert len(seen) == 14
    same = [np.array_equal(one, image.pixels) for one in seen]
    assert sum(same) >= 10
    assert all(np.abs(one.astype(int) - image.pixels).max() <= 1 for one in seen)


@kinds
async def test_repeated_image_is_answered_from_the_cache(kind):
    cache = {"response_cache_bytes": 2**20}
    async with (
        serving(**DECODING | cache) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        image = (await client.preprocessor())(PHOTO)
        assert (await client.classify(image)).timing.cache is None
        assert (await client.classify(image)).timing.cache == "hit"
        other = PreprocessedImage(image.pixels, "0" * 64)
        with pytest.raises(TransformMismatchError):
            await client.classify(other)


@kinds
async def test_replaced_transform_asks_for_a_new_preprocessor(kind, tmp_path):
    folder = tmp_path / "variants"
    describe(folder / "own")
    async with (
        administered(folder) as server,
        Caller(kind, server.addresses[0], token=ADMIN) as client,
    ):
        await client.load_variant("own")
        old = await client.preprocessor("own")
        await client.classify(old(PHOTO), variant="own", top_k=1)
        # Other weights with the same transform take the same images.
        await client.load_variant("own", replace=True)
        await client.classify(old(PHOTO), variant="own", top_k=1)
        small = {"resize": 100, "crop": 96, "mean": [0.5] * 3, "std": [0.25] * 3}
        describe(folder / "own", transform=small)
        await client.load_variant("own", replace=True)
        with pytest.raises(TransformMismatchError, match=r"client\.preprocessor\(\)") as failed:
            await client.classify(old(PHOTO), variant="own", top_k=1)
        assert failed.value.code == "FAILED_PRECONDITION"
        new = await client.preprocessor("own")
        assert new(PHOTO).pixels.shape == (96, 96, 3)
        await client.classify(new(PHOTO), variant="own", top_k=1)
        answers = [
            one
            async for one in items(
                client, "classify_stream", [old(PHOTO), new(PHOTO)], variant="own", top_k=1
            )
        ]
        assert isinstance(answers[0].error, TransformMismatchError)
        assert answers[1].error is None


@kinds
async def test_wrong_size_or_background_is_refused(kind):
    async with serving(**DECODING) as server, Caller(kind, server.addresses[0]) as client:
        image = (await client.preprocessor())(PHOTO)
        cut = PreprocessedImage(image.pixels[:-1], image.transform_digest)
        with pytest.raises(InvalidImageError, match="224 x 224") as failed:
            await client.classify(cut)
        assert failed.value.field == "image.preprocessed.pixels"
        with pytest.raises(InvalidImageError, match="no alpha left for options"):
            await client.classify(image, background="white")
        await client.classify(image)


@kinds
@pytest.mark.parametrize("count", [1, 3])
async def test_background_fails_only_the_preprocessed_image(kind, count):
    async with serving(**DECODING) as server, Caller(kind, server.addresses[0]) as client:
        image = (await client.preprocessor())(PHOTO)
        sent = [image, *[PHOTO] * (count - 1)]
        found = [
            one
            async for one in items(
                client, "classify_many", sent, background="white", return_exceptions=True
            )
        ]
        assert isinstance(found[0], InvalidImageError)
        assert found[0].field == "image.preprocessed"
        assert all(one.top for one in found[1:])


@kinds
async def test_default_variant_of_the_client_is_preprocessed_for(kind, tmp_path):
    describe(two := tmp_path / "two", transform={"resize": 64, "crop": 56, **_NORMAL})
    async with (
        serving(variants=["IMAGENET1K_V2", f"two={two}"]) as server,
        Caller(kind, server.addresses[0], variant="two") as client,
    ):
        preprocess = await client.preprocessor()
        assert (preprocess.variant, preprocess.transform.crop) == ("two", 56)
        await client.classify(preprocess(PHOTO), top_k=1)
        with pytest.raises(TransformMismatchError):
            await client.classify(preprocess(PHOTO), variant="IMAGENET1K_V2")


_NORMAL = {"mean": [0.5] * 3, "std": [0.25] * 3}


@kinds
async def test_large_input_is_uploaded_in_chunks(kind, tmp_path):
    describe(large := tmp_path / "large", transform={"resize": 1300, "crop": 1280, **_NORMAL})
    async with (
        serving(variants=[f"large={large}"]) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        image = (await client.preprocessor())(PHOTO)
        assert image.pixels.nbytes > 4 * 2**20  # the limit of a message
        assert len(await client.classify(image, top_k=1)) == 1
        wrong = PreprocessedImage(image.pixels, "0" * 64)
        with pytest.raises(TransformMismatchError):
            await client.embed(wrong)


@kinds
async def test_fake_server_takes_preprocessed_images(kind):
    with FakeServer() as server:
        async with Caller(kind, server.address) as client:
            image = (await client.preprocessor())(PHOTO)
            await client.classify(image)
        (received,) = server.received
    assert received.image.pixels == image.pixels.tobytes()
    assert received.image.transform_digest == image.transform_digest
