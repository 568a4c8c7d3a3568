from __future__ import annotations

import hashlib
import threading
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_client import AsyncClient, Resnet50Error, VideoFrame
from resnet50_client._unary import CHUNK_BYTES, UPLOAD_ABOVE_BYTES, classify_call

OPTIONS = inference_pb2.ClassifyOptions(top_k=3)


@pytest.mark.parametrize(
    "length",
    [
        UPLOAD_ABOVE_BYTES + 1,
        20 * CHUNK_BYTES,
        20 * CHUNK_BYTES + 1,
        20 * CHUNK_BYTES + 127,
        20 * CHUNK_BYTES + 128,
        21 * CHUNK_BYTES - 1,
    ],
)
def test_length_of_an_upload_is_that_of_its_messages(length):
    content = np.random.default_rng(0).bytes(length)
    call = classify_call(content, None, OPTIONS)
    sent: list[inference_pb2.ClassifyUploadRequest] = []
    stubs = SimpleNamespace(inference=SimpleNamespace(ClassifyUpload=sent.extend))
    call.start(stubs)()  # type: ignore[arg-type]
    assert call.length() == sum(message.ByteSize() for message in sent)
    first, *chunks = sent
    assert first.options.options == OPTIONS
    assert first.options.sha256 == hashlib.sha256(content).digest()
    assert b"".join(message.chunk for message in chunks) == content


@pytest.mark.parametrize(
    ("pixels", "layout"),
    [
        (
            np.arange(1500 * 1000 * 3, dtype=np.uint32).astype(np.uint8).reshape(1000, 1500, 3),
            "RGB",
        ),
        (np.ones((2000, 2200), np.uint8), "GRAY"),
    ],
    ids=["RGB", "grey"],
)
def test_large_arrays_are_uploaded_as_pixels(pixels, layout):
    call = classify_call(pixels, None, OPTIONS)
    sent: list[inference_pb2.ClassifyUploadRequest] = []
    stubs = SimpleNamespace(inference=SimpleNamespace(ClassifyUpload=sent.extend))
    call.start(stubs)()  # type: ignore[arg-type]
    first, *chunks = sent
    raw = first.options.raw
    assert (raw.width, raw.height, raw.pixels) == (pixels.shape[1], pixels.shape[0], b"")
    assert image_pb2.PixelFormat.Name(raw.pixel_format) == f"PIXEL_FORMAT_{layout}"
    assert first.options.sha256 == hashlib.sha256(pixels.tobytes()).digest()
    assert b"".join(message.chunk for message in chunks) == pixels.tobytes()
    assert call.length() == sum(message.ByteSize() for message in sent)


class Pixels(np.ndarray):
    """An array that notes which thread copies it."""

    copied_by: ClassVar[list[threading.Thread]] = []

    def tobytes(self, order="C"):
        self.copied_by.append(threading.current_thread())
        return super().tobytes(order)


def video_frame(pixels: np.ndarray) -> VideoFrame:
    return VideoFrame(pixels, None, 0.0, 0)


@pytest.mark.parametrize("wrap", [lambda pixels: pixels, video_frame], ids=["array", "frame"])
async def test_large_arrays_are_copied_off_the_event_loop(wrap):
    for side, on_the_loop in ((64, True), (1024, False)):
        Pixels.copied_by.clear()
        pixels = np.zeros((side, side, 3), np.uint8).view(Pixels)
        async with AsyncClient("127.0.0.1:1") as client:
            with pytest.raises(Resnet50Error):
                await client.classify(wrap(pixels), timeout_s=0.01)
        (thread,) = Pixels.copied_by
        assert (thread is threading.main_thread()) is on_the_loop


async def test_uploads_are_hashed_off_the_event_loop(monkeypatch):
    hashed_by, original = [], hashlib.sha256

    def sha256(content: bytes):
        hashed_by.append(threading.current_thread())
        return original(content)

    monkeypatch.setattr(hashlib, "sha256", sha256)
    async with AsyncClient("127.0.0.1:1") as client:
        for method in (client.classify, client.embed):
            with pytest.raises(Resnet50Error):
                await method(bytes(UPLOAD_ABOVE_BYTES + 1), timeout_s=0.01)
    assert len(hashed_by) == 2
    assert threading.main_thread() not in hashed_by
