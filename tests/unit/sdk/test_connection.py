from __future__ import annotations

import math
import random

import pytest

from resnet50_client import (
    DeadlineExceededError,
    OverloadedError,
    RetryPolicy,
    ServerError,
    UnavailableError,
)
from resnet50_client import _retries as retries_module
from resnet50_client._channel_config import channel_options
from resnet50_client._config import Connection
from resnet50_client._resolver import Resolver
from resnet50_client._retries import MAX_SENDS, Attempts, Resumption


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["server:50051"], "dns:///server:50051"),
        (["127.0.0.1:1"], "dns:///127.0.0.1:1"),
        (["unix:/run/r.sock"], "unix:/run/r.sock"),
        (["localhost"], "dns:///localhost:50051"),
        (["[::1]:7"], "dns:///[::1]:7"),
        (["::1"], "dns:///[::1]:50051"),
        (["dns:///a:1"], "dns:///a:1"),
        (["127.0.0.1:1", "127.0.0.1:2"], "ipv4:127.0.0.1:1,127.0.0.1:2"),
        (["127.0.0.1:1", "127.0.0.1:1"], "ipv4:127.0.0.1:1"),
        (["[::1]:1", "[::1]:2"], "ipv6:[::1]:1,[::1]:2"),
        (["127.0.0.1", "127.0.0.2:9"], "ipv4:127.0.0.1:50051,127.0.0.2:9"),
    ],
)
def test_addresses_become_one_target(addresses, expected):
    assert Resolver(addresses).target == expected


@pytest.mark.parametrize(
    "server",
    [
        *("", [], ["a:1", ""], ["a:1", "unix:/x"], ["dns:///a:1", "b:1"], [5], "a:http", "a:0"),
        *("localhost:99999", " localhost:1", "http://localhost:50051", "a b:1", ":50051"),
    ],
)
def test_what_is_no_address_is_refused(server):
    with pytest.raises(ValueError, match=r"^server: "):
        Connection.to(server, 1.0, None)


def test_coroutine_function_of_addresses_is_refused():
    async def servers():
        return "localhost:1"

    with pytest.raises(TypeError, match=r"^server: is a coroutine function"):
        Connection.to(servers, 1.0, None)


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan])
def test_timeout_must_be_above_zero(timeout_s):
    with pytest.raises(ValueError, match="timeout_s"):
        Connection.to("a:1", timeout_s, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"overload_attempts": 0},
        {"initial_backoff_s": 0.0},
        {"initial_backoff_s": 0.001},
        {"initial_backoff_s": 3.0, "max_backoff_s": 2.0},
    ],
    ids=str,
)
def test_retry_policy_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        RetryPolicy(**wrong)


def test_grpc_makes_no_retries_of_its_own():
    options = dict(channel_options())
    assert "retryPolicy" not in options["grpc.service_config"]
    assert options["grpc.enable_retries"] == 0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(retries_module, "time", clock)
    return clock


FULL = OverloadedError("full", retry_after_s=0.5)


def test_overload_is_not_retried_unless_asked(clock):
    assert Attempts(RetryPolicy(), 10.0).pause_s(FULL) is None


def test_overload_is_retried_after_the_servers_delay(clock):
    attempts = Attempts(RetryPolicy(overload_attempts=3), 10.0)
    assert [attempts.pause_s(FULL) for _ in range(3)] == [0.5, 0.5, None]


def test_overload_is_not_retried_past_the_deadline(clock):
    attempts = Attempts(RetryPolicy(overload_attempts=9), 0.8)
    assert attempts.pause_s(FULL) == 0.5
    clock.now += 0.5
    assert attempts.pause_s(FULL) is None
    assert attempts.grpc_timeout() == pytest.approx(0.3)


def test_overload_without_retry_info_is_not_retried(clock):
    policy = RetryPolicy(overload_attempts=9)
    assert Attempts(policy, 10.0).pause_s(OverloadedError("full")) is None
    assert Attempts(policy, 10.0).pause_s(ServerError("broken")) is None


GONE = "gone"


def pauses(attempts: Attempts, clock: Clock, **of_error: bool) -> list[float]:
    """Return the pauses between the attempts of a call that always fails."""
    found = []
    while (pause_s := attempts.pause_s(UnavailableError(GONE, **of_error))) is not None:
        found.append(pause_s)
        clock.now += pause_s
    return found


def test_unavailable_is_retried_with_backoff_until_deadline(clock):
    found = pauses(Attempts(RetryPolicy(initial_backoff_s=0.1, max_backoff_s=2.0), 30.0), clock)
    expected = [0.1, 0.2, 0.4, 0.8, 1.6, *[2.0] * (len(found) - 5)]
    assert found == [pytest.approx(pause_s, rel=0.21) for pause_s in expected]
    assert 30.0 - 2.4 <= sum(found) < 30.0


def test_pauses_differ_between_clients(clock):
    policy = RetryPolicy(initial_backoff_s=1.0)
    first = {Attempts(policy, 30.0).pause_s(UnavailableError(GONE)) for _ in range(20)}
    assert len(first) > 10


def test_pauses_differ_between_programs_with_one_seed(clock):
    policy, found = RetryPolicy(initial_backoff_s=1.0), set()
    for _ in range(20):
        random.seed(7)
        found.add(Attempts(policy, 30.0).pause_s(UnavailableError(GONE)))
    assert len(found) > 10


def test_retry_budget_ends_before_the_deadline(clock):
    assert len(pauses(Attempts(RetryPolicy(attempts=4), math.inf), clock)) == 3
    assert pauses(Attempts(RetryPolicy(attempts=1), math.inf), clock) == []


def test_last_error_says_how_often_the_call_was_tried(clock):
    attempts, error = Attempts(RetryPolicy(attempts=3, initial_backoff_s=1.0), 30.0), None
    for _ in range(3):
        error = UnavailableError(GONE)
        attempts.pause_s(error)
    assert error.message == str(error) == "gone; tried 3 times in 0.0 s"


def test_deadline_after_failed_attempts_says_how_they_failed(clock):
    attempts, late = Attempts(RetryPolicy(), 30.0), DeadlineExceededError("no answer")
    attempts.pause_s(UnavailableError(GONE))
    assert attempts.pause_s(late) is None
    assert late.message == "no answer; the attempt before it failed: gone"


def test_unsafe_calls_are_retried_only_before_connecting(clock):
    def attempts() -> Attempts:
        return Attempts(RetryPolicy(), 900.0, connect_timeout_s=30.0)

    assert pauses(attempts(), clock) == []
    assert 27.6 <= sum(pauses(attempts(), clock, never_sent=True)) < 30.0


def test_unsafe_calls_are_not_retried_when_refused(clock):
    attempts = Attempts(RetryPolicy(overload_attempts=3), 900.0, connect_timeout_s=30.0)
    assert attempts.pause_s(FULL) is None


def test_nothing_is_retried_past_the_deadline(clock):
    policy = RetryPolicy(initial_backoff_s=1.0)
    assert Attempts(policy, 0.5).pause_s(UnavailableError(GONE)) is None


def test_infinite_timeout_is_no_deadline(clock):
    assert Attempts(RetryPolicy(), math.inf).grpc_timeout() is None


def test_stream_is_resumed_until_resume_s_without_an_answer(clock):
    resumption = Resumption(RetryPolicy(), 10.0)
    gone = UnavailableError(GONE)
    assert resumption.pause_s(gone) is not None
    clock.now += 9.0
    assert resumption.pause_s(gone) is not None
    resumption.progress()
    clock.now += 9.0
    assert resumption.pause_s(gone) is not None
    clock.now += 10.0
    assert resumption.pause_s(gone) is None


def test_stream_resumes_until_its_poison_frame_fails(clock):
    """Though each restart takes most of the time, and only if answers come after that frame."""
    resumption = Resumption(RetryPolicy(), 10.0)
    for _ in range(MAX_SENDS):
        assert resumption.pause_s(UnavailableError(GONE), broke=True) is not None
        clock.now += 9.0
    assert resumption.pause_s(UnavailableError(GONE), broke=True) is not None
    clock.now += 9.0
    assert resumption.pause_s(UnavailableError(GONE), broke=True) is None


def test_poison_frame_after_an_answer_has_all_its_attempts(clock):
    resumption = Resumption(RetryPolicy(), 10.0)
    for _ in range(2):
        for _ in range(MAX_SENDS):
            assert resumption.pause_s(UnavailableError(GONE), broke=True) is not None
            clock.now += 9.0
        resumption.progress()


def test_stream_is_not_resumed_where_useless_or_disabled(clock):
    assert Resumption(RetryPolicy(), 0.0).pause_s(UnavailableError(GONE)) is None
    assert Resumption(RetryPolicy(), 10.0).pause_s(ServerError("broken")) is None
