"""The number of images in flight of bulk calls."""

from __future__ import annotations

import pytest

from resnet50_client import (
    InvalidRequestError,
    RetryPolicy,
)
from resnet50_client._bulk_flow_control import (
    INCREASE,
    MAX_WINDOW,
    START_WINDOW,
    FlowControl,
)
from resnet50_client._bulk_images import BulkLimits
from tests.support.bulk_state import Run


def test_window_doubles_until_a_call_takes_too_long():
    flow, seen = FlowControl(30.0), []
    for _ in range(10):
        flow.answered(flow.window, flow.window, 0.0, 0.1)
        seen.append(flow.window)
    assert seen[:3] == [2 * START_WINDOW, 4 * START_WINDOW, 8 * START_WINDOW]
    assert seen[-1] == MAX_WINDOW
    flow.answered(32, MAX_WINDOW, 0.0, 2.1)
    assert flow.window == MAX_WINDOW // 2
    flow.answered(32, 256, 0.0, 2.2)  # was in flight at the same time
    assert flow.window == MAX_WINDOW // 2
    before = flow.window
    flow.answered(before, before, 3.0, 3.1)
    assert flow.window == before + INCREASE


def test_window_that_is_not_used_does_not_grow():
    flow = FlowControl(30.0)
    flow.answered(1, 1, 0.0, 0.1)
    assert flow.window == START_WINDOW


def test_window_is_limited_by_max_in_flight():
    flow = FlowControl(30.0, 6)
    for _ in range(10):
        flow.answered(flow.window, flow.window, 0.0, 0.1)
    assert flow.window == 6
    assert FlowControl(30.0, 1).window == 1


@pytest.mark.parametrize("timeout_s", [1.0, 30.0])
def test_slow_server_misses_no_deadline(timeout_s):
    """10 images/s, one after the other: the window settles where calls end in time."""
    run = Run(timeout_s=timeout_s)
    queue, free_at, longest = [], run.clock.now, 0.0
    while run.read < 400:
        while run.batches.wants_image():
            run.add()
        for call in run.calls():
            free_at = max(free_at, run.clock.now) + 0.1 * len(call.images)
            queue.append((free_at, call))
        ends, call = queue.pop(0)
        run.clock.now = ends
        longest = max(longest, ends - call.started)
        run.answer(call)
        run.taken()
    assert longest < timeout_s


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "4"])
def test_wrong_max_in_flight_is_refused(value):
    with pytest.raises(InvalidRequestError, match="max_in_flight"):
        BulkLimits(30.0, RetryPolicy(), True, value)
