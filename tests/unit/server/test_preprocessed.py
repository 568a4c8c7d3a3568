"""Images that the caller has preprocessed: their digest, their size, their place in the cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resnet50.v1 import image_pb2
from resnet50_server.api.image_source import parse_image, transform_digest
from resnet50_server.errors import InvalidImage, TransformMismatch
from resnet50_server.images.decode import decode, pixels_without_decoding
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.source import PreprocessedImage, size_bytes
from resnet50_server.images.transform import LongerSide, Transform
from resnet50_server.inference.response_cache import content_digest

TRANSFORM = Transform(resize=36, crop=(32, 24), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LIMITS = ImageLimits()
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)


def message(pixels: bytes, digest: str) -> image_pb2.Image:
    fields = image_pb2.PreprocessedImage(pixels=pixels, transform_digest=digest)
    return image_pb2.Image(preprocessed=fields)


def test_pixels_reach_the_engine_as_they_are():
    source = parse_image(message(PIXELS.tobytes(), TRANSFORM.digest), LIMITS)
    assert np.array_equal(pixels_without_decoding(source, TRANSFORM), PIXELS)
    assert size_bytes(source) == PIXELS.nbytes
    assert np.array_equal(decode(source, TRANSFORM, LIMITS), PIXELS)


@pytest.mark.parametrize("length", [1, PIXELS.nbytes - 1, PIXELS.nbytes + 1, 3 * 24 * 24])
def test_other_length_than_the_input_is_refused(length):
    source = PreprocessedImage(bytes(length), TRANSFORM.digest)
    with pytest.raises(InvalidImage, match=f"has {length} bytes, .*32 x 24.*has 2304") as failed:
        decode(source, TRANSFORM, LIMITS)
    assert failed.value.field == "image.preprocessed.pixels"


def test_other_transform_is_refused_with_both_digests():
    other = replace(TRANSFORM, resize=40)
    with pytest.raises(TransformMismatch) as failed:
        decode(PreprocessedImage(PIXELS.tobytes(), other.digest), TRANSFORM, LIMITS)
    for text in (other.digest, TRANSFORM.digest, "GetVariant", "resize 36"):
        assert text in str(failed.value)
    assert failed.value.code == "FAILED_PRECONDITION"


def test_a_long_digest_is_shortened_in_the_error():
    with pytest.raises(TransformMismatch) as failed:
        decode(PreprocessedImage(PIXELS.tobytes(), "x" * 100_000), TRANSFORM, LIMITS)
    assert len(str(failed.value)) < 1000


@pytest.mark.parametrize(
    ("one", "field"),
    [
        (message(b"", TRANSFORM.digest), "image.preprocessed.pixels"),
        (message(PIXELS.tobytes(), ""), "image.preprocessed.transform_digest"),
        (message(b"", ""), "image.preprocessed.pixels"),
    ],
)
def test_missing_pixels_or_digest_are_refused(one, field):
    with pytest.raises(InvalidImage) as failed:
        parse_image(one, LIMITS)
    assert failed.value.field == field


def test_reading_the_digest_changes_no_message():
    for one in (image_pb2.Image(encoded=b"x"), image_pb2.Image()):
        before = one.WhichOneof("source")
        assert transform_digest(one) == ""
        assert one.WhichOneof("source") == before


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 37},
        {"resize": (36, 36)},
        {"resize": LongerSide(36)},
        {"resize": None},
        {"crop": (24, 32)},
        {"interpolation": "bicubic"},
        {"antialias": False},
        {"pad_to_square": True},
        {"fill": (1, 0, 0)},
        {"background": (255, 255, 255)},
    ],
    ids=str,
)
def test_digest_changes_with_all_that_changes_pixels(change):
    assert replace(TRANSFORM, **change).digest != TRANSFORM.digest


def test_digest_is_that_of_other_normalisation():
    other = replace(
        TRANSFORM, mean=(0, 0, 0), std=(1, 1, 1), channel_order="BGR", input_range=(0, 255)
    )
    assert other.digest == TRANSFORM.digest
    assert len(other.digest) == 64


def test_digest_is_the_same_in_every_release():
    """A changed digest makes every preprocessor useless: only when pixels change."""
    default = Transform(resize=232, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert default.digest.startswith("3e433adce4c7e80d")


def test_cache_tells_preprocessed_images_apart():
    pixels = PIXELS.tobytes()
    sources = [
        PreprocessedImage(pixels, "a"),
        PreprocessedImage(pixels, "b"),
        PreprocessedImage(pixels[:-1] + b"\0", "a"),
        pixels,
    ]
    assert len({content_digest(one) for one in sources}) == len(sources)
    assert content_digest(sources[0]) == content_digest(PreprocessedImage(pixels, "a"))
