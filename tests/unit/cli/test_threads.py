"""State shared by the commands' threads: one adds to it while another one reads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from resnet50_bench.calls import Outcome
from resnet50_bench.recorder import Recorder

CODES = 4_000


@pytest.fixture(autouse=True)
def threads_take_turns_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


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
