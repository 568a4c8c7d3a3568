from __future__ import annotations

import json
import math

import pytest

from resnet50_client import OverloadedError, RetryPolicy, UnavailableError
from resnet50_client import connection as connection_module
from resnet50_client.connection import Attempts, Connection, channel_options
from resnet50_client.resolver import Resolver


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


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan])
def test_timeout_must_be_above_zero(timeout_s):
    with pytest.raises(ValueError, match="timeout_s"):
        Connection.to("a:1", timeout_s, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": 6},
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


def test_only_lost_calls_are_retried_by_the_channel_and_only_what_is_safe():
    config = json.loads(dict(channel_options(RetryPolicy()))["grpc.service_config"])
    (method,) = config["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]
    named = {(one["service"].rpartition(".")[2], one.get("method")) for one in method["name"]}
    assert named == {
        ("InferenceService", "Classify"),
        ("InferenceService", "Embed"),
        ("VariantService", "ListVariants"),
        ("VariantService", "GetVariant"),
        ("Health", None),
    }


def test_one_attempt_means_no_retry():
    options = dict(channel_options(RetryPolicy(attempts=1)))
    assert "methodConfig" not in json.loads(options["grpc.service_config"])
    assert options["grpc.enable_retries"] == 0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(connection_module, "time", clock)
    return clock


FULL = OverloadedError("full", retry_after_s=0.5)


def test_overload_is_not_retried_unless_asked(clock):
    assert Attempts(RetryPolicy(), 10.0).pause_s(FULL) is None


def test_overload_is_retried_as_often_as_asked_after_the_servers_pause(clock):
    attempts = Attempts(RetryPolicy(overload_attempts=3), 10.0)
    assert [attempts.pause_s(FULL) for _ in range(3)] == [0.5, 0.5, None]


def test_overload_is_not_retried_past_the_deadline(clock):
    attempts = Attempts(RetryPolicy(overload_attempts=9), 0.8)
    assert attempts.pause_s(FULL) == 0.5
    clock.now += 0.5
    assert attempts.pause_s(FULL) is None
    assert attempts.grpc_timeout() == pytest.approx(0.3)


def test_overload_without_the_servers_word_and_other_errors_are_not_retried(clock):
    policy = RetryPolicy(overload_attempts=9)
    assert Attempts(policy, 10.0).pause_s(OverloadedError("full")) is None
    assert Attempts(policy, 10.0).pause_s(UnavailableError("gone")) is None


def test_what_grpc_does_not_retry_is_retried_with_growing_pauses(clock):
    policy = RetryPolicy(attempts=4, initial_backoff_s=1.0, max_backoff_s=2.0)
    attempts = Attempts(policy, 100.0)
    gone = UnavailableError("gone")
    *pauses, last = [attempts.pause_s(gone, of_upload=True) for _ in range(4)]
    assert pauses == [pytest.approx(pause_s, rel=0.2) for pause_s in (1.0, 2.0, 2.0)]
    assert last is None


def test_nothing_is_retried_past_the_deadline(clock):
    policy = RetryPolicy(initial_backoff_s=1.0)
    attempts = Attempts(policy, 0.5)
    assert attempts.pause_s(UnavailableError("gone"), of_upload=True) is None


def test_infinite_timeout_is_no_deadline(clock):
    assert Attempts(RetryPolicy(), math.inf).grpc_timeout() is None
