"""The state behind bulk calls, without a network: read, grouped, sent, sent again, answered."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resnet50_client import (
    DataLossError,
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    RetryPolicy,
    ServerError,
    UnavailableError,
    UnimplementedError,
    VariantNotFoundError,
)
from resnet50_client._batch_sizes import MAX_BATCH_IMAGES
from resnet50_client._batches import (
    ALONE_AFTER,
    LINGER_S,
    MAX_BYTES,
    READ_AHEAD,
    Batches,
)
from resnet50_client._bulk_images import BulkLimits
from resnet50_client._flow_control import (
    CALLS_PER_WINDOW,
    INCREASE,
    MAX_WINDOW,
    START_WINDOW,
    FlowControl,
)
from resnet50_client._retries import MAX_SENDS
from resnet50_client._status import image_too_long
from resnet50_client._unary import UPLOAD_ABOVE_BYTES


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A run whose images are numbers, with a clock of its own."""

    def __init__(self, *, timeout_s: float = 30.0, ordered: bool = True, **limits) -> None:
        self.clock = Clock()
        retry = limits.pop("retry", RetryPolicy())
        self.batches: Batches[int] = Batches(
            BulkLimits(timeout_s, retry, ordered, **limits), self.clock
        )
        self.read = 0

    def add(self, count: int = 1, size: int = 100) -> None:
        for _ in range(count):
            self.batches.begin_read()
            self.batches.add(self.read, None, self.read, bytes(size))
            self.read += 1

    def end(self) -> None:
        self.batches.begin_read()
        self.batches.end()

    def calls(self) -> list:
        return list(iter(self.batches.next_call, None))

    def answer(self, call) -> None:
        self.batches.answered(call, [image.index for image in call.images])

    def taken(self) -> list:
        return list(iter(self.batches.take, None))

    def widen(self, images: int = 4 * MAX_BATCH_IMAGES) -> None:
        """Answer images, slow enough and fast enough, until so many may be in flight."""
        while self.batches._flow.window < images:
            self.add(self.batches._flow.window)
            for call in self.calls():
                self.answer(call)
        self.later(LINGER_S)
        while calls := self.calls():
            for call in calls:
                self.answer(call)
        self.taken()

    def later(self, seconds: float) -> None:
        self.clock.now += seconds


def indices(call) -> list[int]:
    return [image.index for image in call.images]


def outcomes(run: Run) -> dict[int, object]:
    return {one.index: one.error or one.result for one in run.taken()}


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
        run.add(2 * run.batches._flow.window)
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


def test_images_of_a_batch_fail_alone():
    run = Run()
    run.widen()
    first = run.read
    run.add(3)
    run.end()
    (call,) = run.calls()
    bad = InvalidImageError("corrupt")
    run.batches.answered(call, [first, bad, first + 2])
    assert outcomes(run) == {first: first, first + 1: bad, first + 2: first + 2}


@pytest.mark.parametrize("error", [OverloadedError("full"), UnavailableError("draining")])
def test_refused_images_of_a_batch_are_sent_again_alone(error):
    run = Run()
    run.widen()
    first = run.read
    run.add(4)
    run.end()
    (call,) = run.calls()
    run.batches.answered(call, [first, error, error, first + 3])
    assert run.calls() == []
    run.later(run.batches.wait_s())
    (again,) = run.calls()
    assert indices(again) == [first + 1, first + 2]
    run.answer(again)
    assert list(outcomes(run).values()) == [first, first + 1, first + 2, first + 3]


def test_overloaded_servers_delay_is_kept():
    run = Run()
    run.add(1)
    (call,) = run.calls()
    run.batches.failed(call, OverloadedError("full", retry_after_s=7.0))
    assert run.batches.wait_s() == pytest.approx(7.0)


def test_retry_that_becomes_due_between_questions_is_sent():
    run = Run()
    run.add(1)
    (call,) = run.calls()
    run.batches.failed(call, UnavailableError("no server"))
    assert run.calls() == []
    run.later(1.0)  # time passes before the next question
    assert run.batches.wait_s() == 0.0
    assert len(run.calls()) == 1


def test_image_that_is_refused_until_its_time_is_over_fails():
    run = Run(timeout_s=5.0)
    run.add(2)
    for _ in range(100):
        for call in run.calls():
            if 0 in indices(call):
                run.batches.failed(call, OverloadedError("full"))
            else:
                run.answer(call)
        if (wait_s := run.batches.wait_s()) is None:
            break
        run.later(wait_s)
    first, second = run.taken()
    assert isinstance(first.error, OverloadedError)
    assert second.result == 1
    assert run.clock.now <= 105.0


def test_run_fails_if_no_server_is_reachable_in_time():
    run = Run(timeout_s=5.0)
    run.add(3)
    while not run.batches.finished:
        for call in run.calls():
            run.batches.failed(call, UnavailableError("no server", never_sent=True))
        run.later(run.batches.wait_s() or 0.0)
    assert isinstance(run.batches.failure, UnavailableError)
    assert "3 images that were read had no result" in str(run.batches.failure)
    assert run.clock.now <= 105.0


def test_policy_limits_the_attempts_without_a_server():
    run = Run(retry=RetryPolicy(attempts=2))
    run.add(1)
    for _ in range(2):
        (call,) = run.calls()
        run.batches.failed(call, UnavailableError("no server", never_sent=True))
        run.later(run.batches.wait_s() or 0.0)
    assert isinstance(run.batches.failure, UnavailableError)


@pytest.mark.parametrize(
    "error",
    [
        PermissionDeniedError("no"),
        VariantNotFoundError("which?"),
        InvalidRequestError("top_k", field="options.top_k"),
        UnimplementedError("what?"),
    ],
)
def test_error_of_all_images_ends_the_run(error):
    run = Run()
    run.add(1)
    (call,) = run.calls()
    run.batches.failed(call, error)
    assert run.batches.finished
    assert run.batches.failure is error
    assert run.calls() == []


def batch_of(run: Run, images: int):
    run.widen()
    run.add(images)
    run.end()
    (call,) = run.calls()
    return call


def test_limit_of_images_halves_the_batches_for_good():
    run = Run()
    call = batch_of(run, 32)
    limit, sent = 5, []
    refused = [call]
    while refused:
        call = refused.pop()
        if len(call.images) > limit:
            error = InvalidRequestError("has 32 images, a call may have 1 to 5", field="images")
            run.batches.failed(call, error)
        else:
            sent.append(len(call.images))
            run.answer(call)
        refused += run.calls()
    assert max(sent) == 4
    assert sum(sent) == 32
    assert len(outcomes(run)) == 32


def test_invalid_option_ends_the_run_after_a_few_splits():
    run = Run()
    calls = [batch_of(run, 32)]
    made = 0
    while calls and not run.batches.finished:
        made += 1
        run.batches.failed(calls.pop(), InvalidRequestError("no", field="options.top_k"))
        calls = run.calls()[:1] or calls
    assert isinstance(run.batches.failure, InvalidRequestError)
    assert made <= 6


def test_limit_of_bytes_is_kept_from_then_on():
    run = Run()
    run.widen()
    run.add(8, 1000)
    run.end()
    (call,) = run.calls()
    run.batches.failed(call, image_too_long(8500, 4000))
    assert [len(one.images) for one in run.calls()] == [3, 3, 2]


def test_proxy_that_refuses_a_message_gets_smaller_ones():
    run = Run()
    run.widen()
    run.add(8, 1000)
    run.end()
    (call,) = run.calls()
    run.batches.failed(call, ServerError("Received http2 header with status: 413", code="UNKNOWN"))
    assert [len(one.images) for one in run.calls()] == [4, 4]


def test_server_without_batches_gets_single_calls():
    run = Run()
    call = batch_of(run, 8)
    run.batches.failed(call, UnimplementedError("no such method"))
    assert [len(one.images) for one in run.calls()] == [1] * 8


@pytest.mark.parametrize("kind", [ServerError, DataLossError])
def test_batch_that_fails_in_the_server_is_split(kind):
    run = Run()
    call = batch_of(run, 8)
    bad, queue = call.images[5].index, [call]
    while queue:
        for call in queue:
            if bad in indices(call):
                run.batches.failed(call, kind("internal"))
            else:
                run.answer(call)
        run.later(run.batches.wait_s() or 0.0)
        queue = run.calls()
    found = outcomes(run)
    assert isinstance(found.pop(bad), kind)
    assert len(found) == 7
    assert all(isinstance(one, int) for one in found.values())


def test_wrong_number_of_results_is_an_error_of_each_image():
    run = Run()
    call = batch_of(run, 3)
    run.batches.answered(call, [1, 2])
    found = [one.error for one in run.taken()]
    assert [type(one) for one in found] == [ServerError] * 3
    assert len({id(one) for one in found}) == 3


def test_time_of_an_image_spans_its_attempts():
    run = Run(timeout_s=10.0)
    run.add(1)
    (old,) = run.calls()
    run.batches.failed(old, OverloadedError("full", retry_after_s=1.0))
    run.later(1.0)
    (old,) = run.calls()
    assert old.timeout_s == pytest.approx(9.0)
    run.batches.failed(old, DeadlineExceededError("late"))
    assert [type(one.error) for one in run.taken()] == [DeadlineExceededError]


def test_poison_image_is_sent_alone_and_fails_the_others_are_answered():
    run = Run()
    run.widen(4 * MAX_BATCH_IMAGES)
    first = run.read
    run.add(100)
    run.end()
    poison, sends, alone = first + 40, 0, []
    while not run.batches.finished:
        calls = run.calls()
        broken = [call for call in calls if poison in indices(call)]
        for call in calls:
            sends += poison in indices(call)
            alone.append(call.alone)
            if call.alone:
                assert len(calls) == 1
            if broken:  # they share the connection
                run.batches.failed(call, UnavailableError("reset"), broke=True)
            else:
                run.answer(call)
        run.later(run.batches.wait_s() or 0.0)
    found = outcomes(run)
    error = found.pop(poison)
    assert sends == MAX_SENDS + 1
    assert isinstance(error, UnavailableError)
    assert f"image {poison}" in str(error)
    assert found == {index: index for index in range(first, first + 100) if index != poison}
    assert any(alone)
    assert ALONE_AFTER < MAX_SENDS


def test_time_of_an_image_begins_again_after_a_break():
    run = Run(timeout_s=5.0)
    run.add(1)
    for _ in range(MAX_SENDS):
        (call,) = run.calls()
        assert call.timeout_s == pytest.approx(5.0)
        run.later(4.0)
        run.batches.failed(call, UnavailableError("reset"), broke=True)
        run.later(run.batches.wait_s() or 0.0)
    assert [type(one.error) for one in run.taken()] == [UnavailableError]


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
            assert self.run.batches._bytes == self.run.batches._outcomes.bytes == 0
        else:  # no server was reachable for the whole timeout
            assert isinstance(self.run.batches.failure, UnavailableError)
        for one in self.found:
            assert one.error is not None or one.result == one.index


TestBatches = Machine.TestCase
TestBatches.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
