"""Promises that each load balancer keeps to a single call."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from tests.e2e.proxies.balancers import Addresses, Running, Tls
from tests.e2e.proxies.callers import NotAsPromised
from tests.e2e.proxies.probe import DETAILS, MESSAGE, Client, Probe
from tests.e2e.proxies.waiting import PATIENCE_S, wait_until

LARGE = 10 * 2**20
# Maximum bytes of a stream that its reader has not read: in windows, and in the kernel's buffers of
# two connections, which grow up to limits of this machine.
HELD_BYTES = 16 * 2**20 + 2 * sum(
    int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2])
    for name in ("tcp_rmem", "tcp_wmem")
)
# Of a stream that is to be held back.
STREAM_BYTES = 2 * HELD_BYTES

Check = Callable[[Client, "list[Probe]", Running], None]


def metadata_and_deadline_arrive(client: Client, probes: list[Probe], running: Running) -> None:
    """Metadata, the ID of the call and its deadline are those of the client; the log has the ID."""
    for probe in probes:
        probe.metadata, probe.left_s = {}, None
    sent = {"authorization": "Bearer secret", "x-request-id": "probe-1", "x-data-bin": b"\x00\xff"}
    client.echo(b"", timeout=20, metadata=list(sent.items()))
    (got,) = (probe for probe in probes if probe.metadata)
    _equal({key: got.metadata.get(key) for key in sent}, sent)
    if got.left_s is None or not 0 < got.left_s <= 21:  # gRPC rounds it up
        raise NotAsPromised(f"the server has {got.left_s} s, the client sent 20 s")
    client.echo(b"", timeout=20)
    wait_until(lambda: [] if "probe-1" in running.log() else ["probe-1"], "is not in the log")


def calls_without_an_id_get_one(client: Client, probes: list[Probe], running: Running) -> None:
    """A call without an ID has one at the server, and the log has it."""
    for probe in probes:
        probe.metadata = {}
    client.echo(b"", timeout=20)
    (got,) = (probe for probe in probes if probe.metadata)
    found = str(got.metadata.get("x-request-id", ""))
    if len(found) < 16:
        raise NotAsPromised(f"the server got the request ID {found!r}")
    wait_until(lambda: [] if found in running.log() else [found], "is not in the log")


def details_come_back(client: Client, probes: list[Probe], running: Running) -> None:
    """Code, message and trailing metadata of an error are those of the server."""
    error = _error(lambda: client.refuse(b"", timeout=20))
    trailing = dict(error.trailing_metadata())
    _equal(error.code(), grpc.StatusCode.FAILED_PRECONDITION)
    _equal(error.details(), "refused: 100% of it, é")
    _equal(trailing.get("grpc-status-details-bin"), DETAILS)
    _equal(trailing.get("x-request-id"), "of-the-server")


def large_messages_pass(client: Client, probes: list[Probe], running: Running) -> None:
    """A message of 10 MB passes both ways."""
    message = bytes(range(256)) * (LARGE // 256)
    if client.echo(message, timeout=PATIENCE_S) != message:
        raise NotAsPromised("a message of 10 MB has changed")


def calls_of_one_connection_spread(client: Client, probes: list[Probe], running: Running) -> None:
    """Calls over one connection reach both servers, in equal parts."""
    counts: Counter[str] = Counter()
    for _ in range(40):
        _, call = client.echo.with_call(b"", timeout=20)
        counts[dict(call.trailing_metadata())["x-server"]] += 1
    if min(counts[probe.name] for probe in probes) < 10:
        raise NotAsPromised(f"40 calls over one connection went to {dict(counts)}")


def cancelled_calls_end_at_the_server(
    client: Client, probes: list[Probe], running: Running
) -> None:
    """A call that is cancelled, or whose deadline is over, ends at its server."""
    for timeout_s, cancels in ((PATIENCE_S, True), (1.0, False)):
        ended = sum(probe.ended for probe in probes)
        call = client.wait.future(b"", timeout=timeout_s)
        if cancels:
            _wait_for(lambda: sum(probe.waiting for probe in probes) == 1, "no server has the call")
            call.cancel()
        _wait_for(
            lambda before=ended: sum(probe.ended for probe in probes) == before + 1,  # type: ignore[misc]
            f"the server still has a call {'that was cancelled' if cancels else 'out of time'}",
        )


def unread_requests_are_held_back(client: Client, probes: list[Probe], running: Running) -> None:
    """A server that reads no messages stops their sender, and no other call."""
    messages, sent = STREAM_BYTES // len(MESSAGE), itertools.count()
    given = 0

    def source() -> Iterator[bytes]:
        nonlocal given
        for _ in range(messages):
            given = next(sent) + 1
            yield MESSAGE

    for probe in probes:
        probe.open.clear()
    call = client.drain.future(source(), timeout=PATIENCE_S)
    _rests(lambda: given, messages, "a client has sent")
    other = Client(running.address, running.tls)
    with other.channel:
        for one in (client, other) if running.balancer.isolates else (other,):
            for _ in range(20):
                one.echo(MESSAGE, timeout=20)
    for probe in probes:
        probe.open.set()
    _equal(int(call.result()), messages * len(MESSAGE))


def unread_responses_are_held_back(client: Client, probes: list[Probe], running: Running) -> None:
    """A client that reads no messages stops their server, and no other call."""
    messages = STREAM_BYTES // len(MESSAGE)
    for probe in probes:
        probe.sent = 0
    call = client.flood(str(messages).encode(), timeout=PATIENCE_S)
    _rests(lambda: sum(probe.sent for probe in probes), messages, "a server has sent")
    other = Client(running.address, running.tls)
    with other.channel:
        for one in (client, other) if running.balancer.isolates else (other,):
            for _ in range(20):
                one.echo(MESSAGE, timeout=20)
    _equal(sum(map(len, call)), messages * len(MESSAGE))


def large_headers_are_refused(client: Client, probes: list[Probe], running: Running) -> None:
    """Metadata above 16 KiB is an error, and the next call is answered; 12 KiB pass."""
    client.echo(b"", timeout=20, metadata=[("x-large", "a" * 12_000)])
    _error(lambda: client.echo(b"", timeout=20, metadata=[("x-large", "a" * 200_000)]))
    client.echo(b"", timeout=20)


CHECKS: tuple[Check, ...] = (
    metadata_and_deadline_arrive,
    calls_without_an_id_get_one,
    details_come_back,
    large_messages_pass,
    calls_of_one_connection_spread,
    cancelled_calls_end_at_the_server,
    unread_requests_are_held_back,
    unread_responses_are_held_back,
    large_headers_are_refused,
)


def check_all(running: Running, addresses: Addresses, tls: Tls | None) -> list[str]:
    """Run all checks, the last one without servers; return descriptions of those that failed."""
    failed = []
    client = Client(running.address, tls)
    with client.channel:
        probes = [
            Probe(name, *ports)
            for name, *ports in zip(("one", "two"), addresses.backs, addresses.metrics, strict=True)
        ]
        with contextlib.ExitStack() as stack:
            for probe in probes:
                stack.enter_context(probe.running())
            failed += _failures(both_servers_get_calls, client, probes, running)
            for check in CHECKS:
                failed += _failures(check, client, probes, running)
        failed += _failures(no_server_is_unavailable, client, probes, running)
    return failed


def both_servers_get_calls(client: Client, probes: list[Probe], running: Running) -> None:
    """Servers that have started get calls."""
    _wait_for(lambda: _all_answer(client, probes), "a server gets no calls")


def no_server_is_unavailable(client: Client, probes: list[Probe], running: Running) -> None:
    """With no server left, a call ends with UNAVAILABLE and a message."""
    for _ in range(20):
        error = _error(lambda: client.echo(b"", timeout=20))
        _equal(error.code(), grpc.StatusCode.UNAVAILABLE)
        if not error.details():
            raise NotAsPromised("UNAVAILABLE has no message")


def _failures(check: Check, client: Client, probes: list[Probe], running: Running) -> list[str]:
    name = check.__name__.replace("_", " ")
    try:
        check(client, probes, running)
    except (NotAsPromised, grpc.RpcError, ValueError) as error:
        text = f"{error.code()}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
        print(f"    FAILED {name}: {text}", flush=True)
        return [f"{name}: {text}"]
    print(f"    {name}", flush=True)
    return []


def _rests(count: Callable[[], int], total: int, whose: str) -> None:
    """Wait until a number of messages has not grown for a second, and compare it with its limit."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 1.0:
        if (now := count()) != last:
            last, since = now, time.monotonic()
        if now >= total:
            break
        time.sleep(0.02)
    if last * len(MESSAGE) > HELD_BYTES:
        raise NotAsPromised(f"{whose} {last * len(MESSAGE) / 2**20:.1f} MiB that were never read")


def _answers(client: Client) -> bool:
    try:
        client.echo(b"", timeout=20)
    except grpc.RpcError:
        return False
    return True


def _all_answer(client: Client, probes: list[Probe]) -> bool:
    for probe in probes:
        probe.metadata = {}
    for _ in range(8):
        _answers(client)
    return all(probe.metadata for probe in probes)


def _error(call: Callable[[], object]) -> Any:
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise NotAsPromised("a call was answered that has to fail")


def _equal(got: object, expected: object) -> None:
    if got != expected:
        raise NotAsPromised(f"{got!r} instead of {expected!r}")


def _wait_for(condition: Callable[[], bool], problem: str) -> None:
    wait_until(lambda: [] if condition() else ["probe"], problem)
