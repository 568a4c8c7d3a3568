"""Images whose pixels exceed the message limit: sent all the same, with the file's result."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from resnet50_client import InvalidImageError, VideoFrame
from resnet50_client.testing import FakeServer
from tests.support.clients import Caller
from tests.support.pictures import encode, photo_like
from tests.support.serving import serving


@pytest.fixture(scope="module")
def photo():
    """24 megapixels, 72 MB of pixels."""
    return photo_like(300, 200).resize((6000, 4000), Image.Resampling.BILINEAR)


async def test_large_image_has_the_result_of_its_file(kind, untrained_server, photo):
    file = encode(photo, "JPEG", quality=95)
    opened, decoded = (Image.open(io.BytesIO(file)) for _ in range(2))
    decoded.load()
    inputs = [opened, decoded, np.asarray(decoded), VideoFrame(np.asarray(decoded), None, 0, 0)]
    async with Caller(kind, untrained_server, timeout_s=120) as client:
        expected = await client.embed(file)
        for image in inputs:
            found = await client.embed(image)
            assert found.source is image
            np.testing.assert_allclose(found.vector, expected.vector, rtol=1e-3, atol=1e-3)


async def test_layout_of_a_large_array_arrives(kind, untrained_server):
    rgb = np.asarray(photo_like(2000, 1500))
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    async with Caller(kind, untrained_server, timeout_s=120) as client:
        expected = await client.embed(encode(Image.fromarray(rgb), "PNG"))
        for image, pixel_format in ((rgb[:, :, ::-1], "BGR"), (rgba, "RGBA"), (rgba, None)):
            found = await client.embed(image, pixel_format=pixel_format)
            np.testing.assert_allclose(found.vector, expected.vector, rtol=1e-3, atol=1e-3)


async def test_exif_orientation_of_a_large_image_is_applied(kind, untrained_server):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode(photo_like(2400, 1000), "JPEG", quality=95, exif=exif)
    opened, decoded = (Image.open(io.BytesIO(file)) for _ in range(2))
    decoded.load()
    async with Caller(kind, untrained_server, timeout_s=120) as client:
        expected = await client.embed(file)
        for image in (opened, decoded):
            found = await client.embed(image)
            np.testing.assert_allclose(found.vector, expected.vector, rtol=1e-3, atol=1e-3)


async def test_pixels_over_the_limit_are_refused_by_its_name(kind):
    async with (
        serving(max_image_pixels=2_000_000) as server,
        Caller(kind, server.addresses[0], timeout_s=60) as client,
    ):
        image = np.zeros((1500, 2000, 3), np.uint8)
        with pytest.raises(InvalidImageError, match="max_image_pixels") as refused:
            await client.classify(image)
        assert refused.value.source is image
        assert refused.value.field == "image.raw.width"
        assert (await client.classify(image[:1000])).timing.batch_size == 1


async def test_raw_bytes_are_told_how_they_become_an_image(kind):
    rgb24 = np.asarray(photo_like(64, 48)).tobytes()
    async with (
        serving(engine="timed", timed_alpha_ms=0.0, timed_beta_ms=0.0) as server,
        Caller(kind, server.addresses[0], timeout_s=60) as client,
    ):
        with pytest.raises(InvalidImageError, match=r"np\.frombuffer\(.*\)\.reshape\("):
            await client.classify(rgb24)
        array = np.frombuffer(rgb24, np.uint8).reshape(48, 64, 3)
        assert (await client.classify(array)).timing.batch_size == 1


async def test_uploaded_pixels_reach_a_fake_server(kind):
    pixels = np.zeros((1500, 1000, 3), np.uint8)
    with FakeServer() as server:
        async with Caller(kind, server.address, timeout_s=60) as client:
            await client.classify(pixels)
    (received,) = server.received
    assert received.method == "ClassifyUpload"
    assert (received.image.width, received.image.height) == (1000, 1500)
    assert received.image.pixels == pixels.tobytes()
