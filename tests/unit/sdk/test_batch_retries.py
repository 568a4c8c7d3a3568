"""Images of bulk calls that are sent again: overload, broken connections, servers' limits."""

from __future__ import annotations

import pytest

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
)
from resnet50_client._retries import MAX_SENDS
from resnet50_client._status import image_too_long
from tests.support.bulk_state import Run, indices, outcomes


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


def test_image_is_not_sent_again_at_its_deadline():
    run = Run(timeout_s=5.0)
    run.add(1)
    (call,) = run.calls()
    run.batches.failed(call, OverloadedError("full", retry_after_s=5.0))
    (outcome,) = run.taken()
    assert isinstance(outcome.error, OverloadedError)
    run.add(1)
    (call,) = run.calls()
    run.batches.failed(call, OverloadedError("full", retry_after_s=1.0))
    run.later(5.0)  # the program was busy until the deadline
    assert run.calls() == []
    (outcome,) = run.taken()
    assert isinstance(outcome.error, OverloadedError)


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
