from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_bench import payloads
from resnet50_bench.plan import Load, Plan
from resnet50_bench.sample_images import images_of, photograph
from tests.support.pictures import encode, picture

PLAN = Plan(load=Load(concurrency=7), variant="mine")
IMAGE = image_pb2.Image(encoded=bytes(range(256)) * 4000)


def test_unary_requests_hold_image_and_variant():
    (request,) = payloads.unary(PLAN, [IMAGE])
    read = inference_pb2.ClassifyRequest.FromString(request)
    assert (read.image, read.options.variant) == (IMAGE, "mine")
    (request,) = payloads.unary(replace(PLAN, operation="embed"), [IMAGE])
    assert inference_pb2.EmbedRequest.FromString(request).options.variant == "mine"


def test_upload_sends_options_with_digest_then_chunks():
    (parts,) = payloads.uploads(replace(PLAN, shape="upload"), [IMAGE])
    first, *chunks = map(inference_pb2.ClassifyUploadRequest.FromString, parts)
    assert first.options.options.variant == "mine"
    assert first.options.sha256 == hashlib.sha256(IMAGE.encoded).digest()
    assert len(chunks) > 1
    assert b"".join(chunk.chunk for chunk in chunks) == IMAGE.encoded


def test_frames_carry_their_number_and_image():
    (make,) = payloads.frames(replace(PLAN, shape="stream"), [IMAGE])
    for number in (0, 1, 300, 2**40):
        frame = inference_pb2.ClassifyStreamRequest.FromString(make(number)).frame
        assert (frame.frame_id, frame.image) == (number, IMAGE)


def test_stream_config_leaves_room_for_what_is_under_way():
    plan = replace(PLAN, shape="stream", streams=2)
    config = inference_pb2.ClassifyStreamRequest.FromString(payloads.stream_config(plan)).config
    assert (config.options.variant, config.max_in_flight) == ("mine", 7)
    assert config.delivery == inference_pb2.DELIVERY_ORDERED
    latest = replace(plan, delivery="latest", load=Load(fps=5.0))
    config = inference_pb2.ClassifyStreamRequest.FromString(payloads.stream_config(latest)).config
    assert (config.delivery, config.max_in_flight) == (inference_pb2.DELIVERY_LATEST, 0)


def test_generated_images_have_photo_sizes_and_a_seed():
    files = [photograph(seed) for seed in range(4)]
    assert all(90_000 < len(file) < 130_000 for file in files)
    assert len(set(files)) == 4
    assert photograph(2) == files[2]
    assert Image.open(io.BytesIO(files[0])).size == (500, 375)


def test_raw_images_are_pixels_of_the_models_size():
    for image in images_of(replace(PLAN, raw=True, generated=2), size=(232, 232)):
        assert (image.raw.width, image.raw.height) == (232, 232)
        assert image.raw.pixel_format == image_pb2.PIXEL_FORMAT_RGB
        assert np.frombuffer(image.raw.pixels, np.uint8).std() > 10


def test_own_files_are_sent_as_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture()))
    (tmp_path / "b.jpg").write_bytes(encode(picture(), "JPEG"))
    found = images_of(replace(PLAN, files=(str(tmp_path),)), size=(232, 232))
    assert [one.encoded for one in found] == [
        (tmp_path / name).read_bytes() for name in ("a.png", "b.jpg")
    ]


def test_own_files_that_are_no_images_cannot_be_sent_raw(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="files"):
        images_of(replace(PLAN, files=(str(tmp_path / "a.png"),), raw=True), size=(232, 232))
