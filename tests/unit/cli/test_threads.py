"""State shared by the commands' threads: one adds to it while another one reads."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator

import pytest

from resnet50_bench.calls import Outcome
from resnet50_bench.recorder import Recorder
from resnet50_cli.stream.frame_source import InFlightFrames, SourceFrame
from resnet50_client._frames import FrameAnswer

FRAMES = 60_000
CODES = 4_000


@pytest.fixture(autouse=True)
def threads_take_turns_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_frames_are_answered_while_others_are_sent():
    done = []
    in_flight = InFlightFrames(
        (SourceFrame(b"", number, 0.0, "") for number in range(FRAMES)),
        threading.Event(),
        None,
        lambda frame: done.append(frame.number),
    )
    sent: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def send() -> None:
        for number, _ in enumerate(in_flight.images()):
            sent.put(number)
        sent.put(None)

    sending = threading.Thread(target=send)
    sending.start()
    try:
        while (frame_id := sent.get()) is not None:
            in_flight.answered(FrameAnswer(frame_id, None, None, None))
    finally:
        in_flight.close()
        sending.join()
    assert done == list(range(FRAMES))


def test_errors_are_shown_while_others_are_counted():
    recorder = Recorder(0.0, 0.0, 1.0, 1.0)

    def count() -> None:
        for number in range(CODES):
            recorder.begin(0.5)
            recorder.end(0.5, 0.5, Outcome(str(number)))

    counting = threading.Thread(target=count)
    counting.start()
    try:
        while counting.is_alive():
            assert len(recorder.errors) <= CODES
    finally:
        counting.join()
    assert len(recorder.errors) == CODES
