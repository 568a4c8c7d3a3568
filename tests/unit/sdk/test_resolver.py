"""Names of a list of servers: looked up late, again, and off the waiting thread."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading

import pytest

from resnet50_client import _resolver as module
from resnet50_client._resolver import AGAIN_S, POLL_S, REFRESH_S, Resolver
from tests.support.threads import join_threads


class Names:
    """A name service, and the time; both as a test says.

    Attributes:
        hosts: The addresses of each name; an error is raised.
        asked: The names that were looked up.
        now: Time of the clock, in seconds.
        gate: Holds answers back while it is not set.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, list[str] | Exception] = {}
        self.asked: list[str] = []
        self.now = 1000.0
        self.gate = threading.Event()
        self.gate.set()
        self.threads: list[threading.Thread] = []

    def getaddrinfo(self, host: str, port: int, **_: object) -> list[tuple]:
        self.asked.append(host)
        self.threads.append(threading.current_thread())
        assert self.gate.wait(30)
        found = self.hosts.get(host, socket.gaierror(-2, "Name or service not known"))
        if isinstance(found, Exception):
            raise found
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, 1, 6, "", (ip, port)) for ip in found
        ]

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def names(monkeypatch):
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    monkeypatch.setattr(module, "time", names)
    yield names
    names.gate.set()
    for thread in names.threads:
        thread.join(30)


def looked_up(resolver: Resolver) -> str:
    """Wait for the lookup that is due, if one is; return the target."""
    _ = resolver.target  # starts it
    join_threads("resolve names")
    return resolver.target


def fail_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_names_are_looked_up_again_after_a_time_without_threads(names, monkeypatch, caplog):
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    resolver = Resolver(["a:1", "b:2"])
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", fail_to_start)
        with pytest.raises(RuntimeError, match="new thread"):
            _ = resolver.target
    known = looked_up(resolver)
    names.hosts["a"] = ["10.0.0.3"]
    names.now += REFRESH_S
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", fail_to_start)
        assert resolver.target == known
        assert resolver.target == known
    assert caplog.text.count("names cannot be resolved now") == 1
    names.now += REFRESH_S
    assert looked_up(resolver) == "ipv4:10.0.0.3:1,10.0.0.2:2"


def test_nothing_is_looked_up_before_the_first_call(names):
    names.hosts = {"a": ["10.0.0.2", "10.0.0.1"], "b": ["10.0.0.3"]}
    resolver = Resolver(["a:1", "b:2", "10.0.0.9"])
    assert names.asked == []
    assert looked_up(resolver) == "ipv4:10.0.0.1:1,10.0.0.2:1,10.0.0.3:2,10.0.0.9:50051"
    assert names.asked == ["a", "b"]


@pytest.mark.parametrize(
    "addresses", [["a:1"], ["10.0.0.1:1", "10.0.0.2:1"], ["[::1]:1", "10.0.0.2:1"], ["unix:/a"]]
)
def test_one_name_is_left_to_grpc_and_numbers_need_no_lookup(names, addresses):
    resolver = Resolver(addresses)
    assert resolver.target
    looked_up(resolver)
    assert names.asked == []


@pytest.mark.parametrize(
    ("hosts", "target"),
    [
        ({"a": ["10.0.0.1", "::1"], "b": ["10.0.0.2", "::2"]}, "ipv4:10.0.0.1:1,10.0.0.2:1"),
        ({"a": ["10.0.0.1", "::1"], "b": ["10.0.0.2"]}, "ipv4:10.0.0.1:1,10.0.0.2:1"),
        ({"a": ["::1"], "b": ["::2", "10.0.0.2"]}, "ipv6:[::1]:1,[::2]:1"),
        ({"a": ["10.0.0.1"], "b": ["::2"]}, "ipv6:[::ffff:10.0.0.1]:1,[::2]:1"),
    ],
)
def test_servers_of_a_list_are_reached_by_ipv4_and_ipv6(names, hosts, target):
    names.hosts = hosts
    assert looked_up(Resolver(["a:1", "b:1"])) == target


def test_unresolvable_names_are_left_to_grpc_and_retried(names, caplog):
    resolver = Resolver(["a:1", "b:1"])
    with caplog.at_level(logging.WARNING):
        assert looked_up(resolver) == "dns:///a:1"  # gRPC's failure of it is UNAVAILABLE
    (record,) = caplog.records
    assert "a:1: Name or service not known; b:1: Name or" in record.getMessage()
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    names.now += AGAIN_S
    assert looked_up(resolver) == "ipv4:10.0.0.1:1,10.0.0.2:1"


def test_one_unresolvable_name_is_skipped_and_logged_once(names, caplog):
    names.hosts = {"b": ["10.0.0.2"]}
    resolver = Resolver(["a:1", "b:1"])
    with caplog.at_level(logging.WARNING):
        assert looked_up(resolver) == "ipv4:10.0.0.2:1"
        names.now += REFRESH_S
        assert looked_up(resolver) == "ipv4:10.0.0.2:1"
    (record,) = caplog.records
    assert "a:1: Name or service not known" in record.getMessage()
    names.now += REFRESH_S
    names.hosts["a"] = ["10.0.0.1"]
    assert looked_up(resolver) == "ipv4:10.0.0.1:1,10.0.0.2:1"


def test_server_that_moves_is_found_again_while_calls_fail(names):
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    resolver = Resolver(["a:1", "b:1"])
    looked_up(resolver)
    names.hosts["a"] = ["10.9.9.9"]
    names.now += AGAIN_S
    assert looked_up(resolver) == "ipv4:10.0.0.1:1,10.0.0.2:1"  # nothing has failed
    resolver.failed()
    assert looked_up(resolver) == "ipv4:10.9.9.9:1,10.0.0.2:1"


def test_names_are_looked_up_rarely_once_calls_succeed_again(names):
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    resolver = Resolver(["a:1", "b:1"])
    looked_up(resolver)
    resolver.failed()
    for _ in range(5):
        names.now += AGAIN_S
        looked_up(resolver)
    assert names.asked == ["a", "b"] * 2


def test_names_are_not_looked_up_at_every_failure(names):
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    resolver = Resolver(["a:1", "b:1"])
    looked_up(resolver)
    for _ in range(10):
        resolver.failed()
        looked_up(resolver)
    assert names.asked == ["a", "b"]


def test_unresolvable_name_keeps_its_last_addresses(names):
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    resolver = Resolver(["a:1", "b:1"])
    looked_up(resolver)
    names.hosts = {"b": ["10.0.0.3"]}
    names.now += REFRESH_S
    assert looked_up(resolver) == "ipv4:10.0.0.1:1,10.0.0.3:1"
    names.hosts = {}
    names.now += REFRESH_S
    assert looked_up(resolver) == "ipv4:10.0.0.1:1,10.0.0.3:1"


def test_a_later_lookup_holds_nobody_up(names):
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    resolver = Resolver(["a:1", "b:1"])
    first = looked_up(resolver)
    names.gate.clear()
    names.now += REFRESH_S
    resolver.wait(30)
    assert resolver.target == first


def test_slow_lookup_is_waited_for_once_and_not_for_long(names, monkeypatch):
    monkeypatch.setattr(module, "FIRST_LOOKUP_S", 0.01)
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    names.gate.clear()
    resolver = Resolver(["a:1", "b:1"])
    resolver.wait(math.inf)
    assert resolver.target == "dns:///a:1"
    names.gate.set()
    assert looked_up(resolver) == "ipv4:10.0.0.1:1,10.0.0.2:1"
    assert names.asked == ["a", "b"]


def test_many_callers_share_one_lookup(names, monkeypatch):
    monkeypatch.setattr(module, "FIRST_LOOKUP_S", 30.0)
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    names.gate.clear()
    resolver = Resolver(["a:1", "b:1"])
    callers = [threading.Thread(target=resolver.wait, args=[math.inf]) for _ in range(8)]
    for caller in callers:
        caller.start()
    names.gate.set()
    for caller in callers:
        caller.join(30)
    assert names.asked == ["a", "b"]
    assert resolver.target


async def test_event_loop_runs_on_while_names_are_looked_up(names, monkeypatch):
    monkeypatch.setattr(module, "FIRST_LOOKUP_S", 30.0)
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    names.gate.clear()
    resolver = Resolver(["a:1", "b:1"])
    waiting = [asyncio.create_task(resolver.wait_async(math.inf)) for _ in range(3)]
    await asyncio.sleep(0)  # the loop is free: it comes back here
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    await resolver.wait_async(0.01)
    assert not waiting[1].done()
    names.gate.set()
    await asyncio.gather(*waiting[1:])
    assert resolver.target == "ipv4:10.0.0.1:1,10.0.0.2:1"
    assert names.asked == ["a", "b"]
    assert threading.main_thread() not in names.threads


class Listed:
    """A function that returns addresses, as a test says.

    Attributes:
        result: It is returned; an error is raised.
        calls: Number of calls.
    """

    def __init__(self, result: object) -> None:
        self.result = result
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def test_addresses_of_a_function_follow_it(names):
    function = Listed(["10.0.0.1:1"])
    resolver = Resolver((), function)
    assert function.calls == 0
    assert looked_up(resolver) == "dns:///10.0.0.1:1"
    function.result = ["10.0.0.2:1", "10.0.0.1:1"]
    assert looked_up(resolver) == "dns:///10.0.0.1:1"
    names.now += POLL_S
    assert looked_up(resolver) == "ipv4:10.0.0.1:1,10.0.0.2:1"
    assert function.calls == 2


def test_order_of_a_functions_addresses_does_not_matter(names):
    function = Listed(["10.0.0.1:1", "10.0.0.2:1"])
    resolver = Resolver((), function)
    first = looked_up(resolver)
    function.result = ("10.0.0.2:1", "10.0.0.1:1", "10.0.0.1:1")
    names.now += POLL_S
    assert looked_up(resolver) == first


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (OSError("no such host"), "the function failed: OSError: no such host"),
        (SystemExit("no login"), "the function failed: SystemExit: no login"),
        ([], "the function returned"),
        (["a:http"], "the function returned 'a:http' is neither host:port"),
        (None, "the function returned of type NoneType is neither an address"),
    ],
    ids=["error", "exit", "none", "invalid", "type"],
)
def test_failing_function_keeps_the_last_addresses(names, caplog, result, text):
    function = Listed("10.0.0.1:1")
    resolver = Resolver((), function)
    first = looked_up(resolver)
    function.result = result
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            names.now += POLL_S
            assert looked_up(resolver) == first
    (record,) = caplog.records
    assert record.getMessage().startswith(f"server: {text}")
    assert resolver.problem is None


def test_function_is_called_again_soon_while_calls_fail(names):
    function = Listed(["10.0.0.1:1"])
    resolver = Resolver((), function)
    looked_up(resolver)
    names.now += AGAIN_S
    looked_up(resolver)
    assert function.calls == 1
    resolver.failed()
    looked_up(resolver)
    assert function.calls == 2


def test_names_that_a_function_returns_are_resolved(names):
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    resolver = Resolver((), Listed(["a:1", "b:1"]))
    assert looked_up(resolver) == "ipv4:10.0.0.1:1,10.0.0.2:1"
    assert names.asked == ["a", "b"]


def test_without_a_first_address_there_is_a_problem(names):
    function = Listed(LookupError("nothing is deployed"))
    resolver = Resolver((), function)
    assert resolver.problem == "the function has not returned yet"
    looked_up(resolver)
    assert resolver.problem == "the function failed: LookupError: nothing is deployed"
    function.result = "10.0.0.1:1"
    names.now += AGAIN_S
    looked_up(resolver)
    assert resolver.problem is None
