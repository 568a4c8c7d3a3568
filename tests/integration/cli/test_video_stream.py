"""A clip that moves, from the file through both clients and a server process to its answers."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resnet50_client import Client, VideoFrame, frames_from_video
from tests.support.clients import Caller, items
from tests.support.clips import moving_digits, picture_frame, write_clip
from tests.support.serving import engines_of, server_processes, serving

FPS, EACH, DIGITS = 30, 5, 20  # 3.3 s
FRAMES = EACH * DIGITS


@pytest.fixture(scope="module")
def clip(digits, tmp_path_factory) -> Path:
    pictures = moving_digits(digits.digits().held_out[:DIGITS], each=EACH)
    path = tmp_path_factory.mktemp("clip") / "digits.mp4"
    return write_clip(
        path, map(picture_frame, pictures), codec="mpeg4", fps=FPS, bit_rate=4_000_000
    )


@pytest.fixture(scope="module")
def truth(digits) -> list[str]:
    labels = digits.digits().held_out_labels[:DIGITS]
    return [digits.CATEGORIES[label] for label in labels for _ in range(EACH)]


@pytest.fixture(scope="module")
def address(built) -> Iterator[str]:
    folder, _ = built
    with server_processes() as start:
        address = start("--variants", f"digits={folder}").wait_until_listening()
        with Client(address) as client:
            client.wait_until_ready()
        yield address


def as_nv12(frame: VideoFrame) -> VideoFrame:
    """Return an I420 frame as a camera or a hardware decoder would have it."""
    rows, width = frame.image.shape
    luma, chroma = np.split(frame.image, [rows // 3 * 2])
    u, v = chroma.reshape(2, -1)
    interleaved = np.stack([u, v], axis=-1).reshape(-1, width)
    return replace(frame, image=np.concatenate([luma, interleaved]), pixel_format="NV12")


def frames_of(clip: Path, encoding: str) -> Iterator[VideoFrame]:
    if encoding == "jpeg":
        return frames_from_video(clip, encoding="jpeg")
    frames = frames_from_video(clip)
    return frames if encoding == "I420" else map(as_nv12, frames)


@pytest.mark.parametrize("encoding", ["jpeg", "I420", "NV12"])
async def test_ordered_clip_is_recognised_frame_by_frame(kind, encoding, clip, truth, address):
    async with Caller(kind, address) as client:
        answers = [
            answer
            async for answer in items(client, "classify_stream", frames_of(clip, encoding), top_k=1)
        ]
        singly = {
            frame.number: await client.classify(frame, top_k=1)
            for frame in frames_of(clip, encoding)
            if frame.number % 30 == 0
        }
    assert [answer.frame_id for answer in answers] == list(range(FRAMES))
    assert [answer.error for answer in answers if answer.result is None] == []
    labels = [answer.result.top.label for answer in answers]
    right = sum(one == other for one, other in zip(labels, truth, strict=True))
    assert right / FRAMES >= 0.8  # of ten digits
    for number, result in singly.items():
        assert result.top.label == labels[number]
        assert result.top.probability == pytest.approx(
            answers[number].result.top.probability, abs=1e-3
        )


def test_i420_and_nv12_show_the_server_the_same(clip, address):
    frame = next(frames_from_video(clip))
    with Client(address) as client:
        one, other = (client.classify(each).top.probability for each in (frame, as_nv12(frame)))
    assert one == pytest.approx(other, abs=1e-5)


async def test_latest_answers_fresh_frames_and_says_which_it_dropped(kind, clip):
    """In steps of the engine: for each batch that has ended, three more frames are shown."""
    shown, due = 0, threading.Semaphore(3)

    def live() -> Iterator[VideoFrame]:
        nonlocal shown
        for frame in frames_from_video(clip, encoding="jpeg"):
            assert due.acquire(timeout=60)
            shown += 1
            yield frame

    computed, dropped, newer = [], [], []
    async with serving(engine="timed", timed_alpha_ms=5) as server:
        (engine,) = engines_of(server)
        run = engine.run

        def counted(*arguments):
            try:
                return run(*arguments)
            finally:
                due.release(3)

        engine.run = counted
        async with Caller(kind, server.addresses[0]) as client:
            async for answer in items(client, "classify_stream", live(), delivery="latest"):
                if answer.dropped:
                    dropped.append(answer)
                else:
                    assert answer.result is not None, answer
                    computed.append(answer.frame_id)
                    newer.append(shown - 1 - answer.frame_id)
    assert shown == FRAMES
    assert sorted([*computed, *(answer.frame_id for answer in dropped)]) == list(range(FRAMES))
    assert computed == sorted(computed)
    assert computed[-1] == FRAMES - 1
    assert all(answer.replaced_by > answer.frame_id for answer in dropped)
    assert len(dropped) > len(computed) > FRAMES / 10
    assert statistics.median(newer) <= 6  # two batches' worth of frames
