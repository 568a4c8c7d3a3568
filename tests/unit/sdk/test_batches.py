"""The state behind bulk calls, without a network: read, grouped, sent, sent again, answered."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resnet50_client import (
    DeadlineExceededError,
    InvalidImageError,
    OverloadedError,
    ServerError,
    UnavailableError,
)
from resnet50_client._batch_sizes import MAX_BATCH_IMAGES, OVERHEAD_BYTES, message_bytes
from resnet50_client._batches import (
    LINGER_S,
    MAX_BYTES,
    READ_AHEAD,
)
from resnet50_client._bulk_flow_control import (
    CALLS_PER_WINDOW,
)
from resnet50_client._unary import UPLOAD_ABOVE_BYTES
from tests.support.bulk_state import Run, indices


def test_error_of_an_image_has_the_id_of_its_call():
    run = Run()
    run.add(1)
    run.end()
    call = run.batches.next_call()
    run.batches.answered(call, [InvalidImageError("broken")], request_id="a1")
    assert run.batches.take().error.request_id == "a1"


def test_images_are_grouped_as_the_window_grows():
    run = Run()
    sizes = []
    for _ in range(16):
        run.add(2 * run.batches.window)
        calls = run.calls()
        sizes.append(max(len(call.images) for call in calls))
        assert len(calls) >= CALLS_PER_WINDOW
        for call in calls:
            run.answer(call)
    assert sizes[0] == 1
    assert sizes[-1] == MAX_BATCH_IMAGES
    assert sorted(sizes) == sizes


def test_batch_has_at_most_the_bytes_of_a_message():
    run = Run()
    run.widen()
    size = UPLOAD_ABOVE_BYTES // 5
    run.add(12, size)
    run.end()
    assert [len(call.images) for call in run.calls()] == [4, 4, 4]


def test_batch_may_have_exactly_the_bytes_of_a_message():
    run = Run()
    run.widen()
    run.add(8, UPLOAD_ABOVE_BYTES // 4 - OVERHEAD_BYTES)
    run.end()
    calls = run.calls()
    assert [message_bytes(call.images) for call in calls] == [UPLOAD_ABOVE_BYTES] * 2


def test_large_image_is_a_call_of_its_own():
    run = Run()
    run.widen()
    first = run.read
    run.add(1)
    run.add(1, UPLOAD_ABOVE_BYTES + 1)
    run.add(1)
    run.end()
    calls = [indices(call) for call in run.calls()]
    assert [first + 1] in calls
    assert sorted(index for call in calls for index in call) == [first, first + 1, first + 2]


def test_part_of_a_batch_is_sent_if_the_source_is_slow():
    run = Run()
    run.widen()
    run.batches.begin_read()  # and blocks
    run.add(3)
    assert run.calls() == []
    assert run.batches.wait_s() == pytest.approx(LINGER_S)
    run.later(LINGER_S)
    (call,) = run.calls()
    assert len(call.images) == 3
    assert run.batches.wait_s() is None


def test_part_of_a_batch_is_sent_at_once_at_the_end():
    run = Run()
    run.widen()
    run.add(3)
    run.end()
    assert [len(call.images) for call in run.calls()] == [3]


def test_images_are_read_ahead_up_to_a_window_and_the_bytes():
    run = Run()
    run.add(READ_AHEAD)
    assert not run.batches.wants_image()
    run.calls()
    assert run.batches.wants_image()
    run.add(1, MAX_BYTES)
    assert not run.batches.wants_image()


def test_bytes_of_a_source_count_until_its_result_is_taken():
    run = Run()
    content = bytes(MAX_BYTES)
    run.batches.begin_read()
    run.batches.add(0, None, content, content)
    (call,) = run.calls()
    run.answer(call)
    assert not run.batches.wants_image()
    assert [one.source for one in run.taken()] == [content]
    assert run.batches.wants_image()


def test_results_that_are_not_taken_stop_the_reading():
    run = Run()
    run.add(1)
    (call,) = run.calls()
    run.batches.answered(call, [0], reply_bytes=MAX_BYTES)
    assert not run.batches.wants_image()
    run.taken()
    assert run.batches.wants_image()


def test_results_come_in_order_or_as_they_complete():
    for ordered, expected in ((True, [0, 1, 2, 3]), (False, [3, 2, 1, 0])):
        run = Run(ordered=ordered)
        run.add(4)
        for call in reversed(run.calls()):
            run.answer(call)
        assert [one.index for one in run.taken()] == expected


def test_unreadable_image_has_its_error_in_its_place():
    run = Run()
    run.add(1)
    run.batches.begin_read()
    error = OSError("no such file")
    run.batches.add_error(1, None, "gone.jpg", error)
    run.read = 2
    run.add(1)
    run.end()
    for call in run.calls():
        run.answer(call)
    assert [one.error or one.result for one in run.taken()] == [0, error, 2]
    assert run.batches.finished


def test_failing_source_is_raised_after_the_results_of_its_images():
    run = Run()
    run.add(2)
    run.batches.begin_read()
    failure = ValueError("the disk is gone")
    run.batches.end(failure)
    for call in run.calls():
        assert not run.batches.finished
        run.answer(call)
    assert len(run.taken()) == 2
    assert run.batches.finished
    assert run.batches.failure is failure


class Machine(RuleBasedStateMachine):
    """Servers that answer, refuse, fail and break: each image has one outcome."""

    @initialize(ordered=st.booleans(), timeout_s=st.sampled_from([3.0, 1000.0]))
    def begin(self, ordered, timeout_s):
        self.run = Run(ordered=ordered, timeout_s=timeout_s)
        self.ordered = ordered
        self.calls: list = []
        self.found: list = []
        self.ended = False

    def send(self) -> None:
        while (call := self.run.batches.next_call()) is not None:
            size = sum(image.content_bytes for image in call.images)
            assert len(call.images) == 1 or size <= UPLOAD_ABOVE_BYTES
            assert len(call.images) <= MAX_BATCH_IMAGES
            assert not call.alone or not self.calls
            assert not any(one.alone for one in self.calls)
            assert call.timeout_s > 0
            self.calls.append(call)

    @precondition(lambda self: not self.ended)
    @rule(size=st.sampled_from([10, 10, 10, 2**20, 5 * 2**20]), count=st.integers(1, 40))
    def read(self, size, count):
        for _ in range(count):
            if not self.run.batches.wants_image():
                break
            self.run.add(1, size)
            self.send()

    @precondition(lambda self: not self.ended)
    @rule()
    def read_a_bad_one(self):
        if self.run.batches.wants_image():
            self.run.batches.begin_read()
            self.run.batches.add_error(self.run.read, None, None, OSError("bad"))
            self.run.read += 1

    @precondition(lambda self: not self.ended)
    @rule()
    def end(self):
        self.ended = True
        self.run.end()
        self.send()

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), bad=st.sampled_from([None, "refused", "invalid"]))
    def answer(self, data, bad):
        call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        results: list = indices(call)
        if bad is not None and len(results) > 1:
            at = data.draw(st.integers(0, len(results) - 1))
            error = OverloadedError("full") if bad == "refused" else InvalidImageError("corrupt")
            results[at] = error
        self.run.batches.answered(call, results, 100 * len(results))
        self.send()

    @precondition(lambda self: self.calls)
    @rule(
        data=st.data(),
        kind=st.sampled_from(
            [OverloadedError, UnavailableError, DeadlineExceededError, ServerError, "broke"]
        ),
    )
    def fail(self, data, kind):
        call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        if kind == "broke":
            self.run.batches.failed(call, UnavailableError("reset"), broke=True)
        else:
            self.run.batches.failed(call, kind("failed"))
        self.send()

    @rule(seconds=st.sampled_from([0.001, 0.05, 1.0]))
    def wait(self, seconds):
        self.run.later(seconds)
        self.send()

    @rule()
    def take(self):
        self.found += self.run.taken()

    @invariant()
    def images_are_in_one_call_at_most(self):
        sent = [image.index for call in self.calls for image in call.images]
        assert len(sent) == len(set(sent)) == self.run.batches.in_flight

    @invariant()
    def outcomes_come_once_and_in_order(self):
        found = [one.index for one in self.found]
        assert len(found) == len(set(found))
        if self.ordered:
            assert found == list(range(len(found)))

    def teardown(self):
        if not hasattr(self, "run"):
            return
        if not self.ended:
            self.run.end()
        for _ in range(10_000):
            self.send()
            if self.calls:
                call = self.calls.pop()
                self.run.batches.answered(call, indices(call))
            elif (wait_s := self.run.batches.wait_s()) is not None:
                self.run.later(wait_s)
            elif self.run.batches.finished:
                break
            self.found += self.run.taken()
        assert self.run.batches.finished
        self.found += self.run.taken()
        self.outcomes_come_once_and_in_order()
        if self.run.batches.failure is None:
            assert {one.index for one in self.found} == set(range(self.run.read))
            assert self.run.batches.bytes == 0
        else:  # no server was reachable for the whole timeout
            assert isinstance(self.run.batches.failure, UnavailableError)
        for one in self.found:
            assert one.error is not None or one.result == one.index


TestBatches = Machine.TestCase
TestBatches.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
