"""`resnet50 top`: servers that die, come back, or hang, beside others that do not."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time

import pytest

from resnet50_cli.top import tables
from resnet50_cli.top.poller import Poller, poll_all
from resnet50_cli.top.snapshot import Snapshot, snapshots
from resnet50_cli.top.variant_status import VariantStatus, VariantStatusPoller
from resnet50_client import Client, Variant
from resnet50_metrics.scrape import Endpoint, ScrapeError
from tests.support.exporting import Exported, exporting
from tests.support.threads import join_threads

NO_STATUSES = VariantStatusPoller({})


def poller(address: str, timeout_s: float = 10.0, stale_s: float = 60.0) -> Poller:
    return Poller(Endpoint.of(address), timeout_s, stale_s)


def seen(*pollers: Poller) -> Snapshot:
    poll_all(pollers)
    return Snapshot.of(pollers, NO_STATUSES, 2.0)


def test_dead_server_is_shown_and_recovers():
    exported = Exported()
    exported.load("digits")
    with exporting(exported) as address:
        port = int(address.partition(":")[2])
        one = poller(address)
        first = seen(one)
        exported.answer("digits", 10)
        second = seen(one)
    assert first.total.images_per_s is None
    assert second.total.images_per_s > 0
    dead = seen(one)
    assert (dead.total, dead.servers[0].metrics) == (None, None)
    assert "refused" in dead.servers[0].failure
    since_s = one.failing_since_s
    still = seen(one)
    assert one.failing_since_s == since_s
    assert still.servers[0].failing_s >= dead.servers[0].failing_s
    # It has not been restarted, only out of reach: what it did meanwhile is known.
    exported.answer("digits", 10)
    with exporting(exported, port):
        back = seen(one)
    assert (back.servers[0].failure, back.servers[0].failing_s) == ("", 0.0)
    assert back.total.images_per_s > 0


def test_restarted_server_shows_no_rates_of_the_old_one():
    old, new = Exported(1000.0), Exported(2000.0)
    for exported, images in ((old, 10), (new, 500)):
        exported.load("digits")
        exported.answer("digits", images)
    with exporting(old) as address:
        port = int(address.partition(":")[2])
        one = poller(address)
        seen(one)
    with exporting(new, port):
        assert seen(one).total.images_per_s is None
        new.answer("digits", 1)
        assert seen(one).total.images_per_s > 0


def test_after_a_long_silence_there_are_no_means_over_it():
    exported = Exported()
    exported.load("digits")
    with exporting(exported) as address:
        one = poller(address, stale_s=0.0)
        seen(one)
        assert seen(one).total.images_per_s is None


def test_a_server_that_hangs_does_not_hide_the_others(monkeypatch):
    monkeypatch.setattr("resnet50_cli.top.poller.GRACE_S", 0.0)
    exported = Exported()
    exported.load("digits")
    with exporting(exported) as address, socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        hanging = poller(f"127.0.0.1:{port}", timeout_s=0.3)
        found = seen(hanging, poller(address))
        assert "no response within 0.3 s" in found.servers[0].failure
        assert found.servers[1].metrics is not None
        assert [one.name for one in found.total.variants] == ["digits"]


def test_a_look_that_goes_on_is_not_begun_a_second_time(monkeypatch):
    polls, release = [], threading.Event()

    def stuck_in_dns(endpoint: Endpoint, timeout_s: float) -> None:
        polls.append(endpoint)
        release.wait(60)
        raise ScrapeError("unknown host")

    monkeypatch.setattr("resnet50_cli.top.poller.fetch", stuck_in_dns)
    monkeypatch.setattr("resnet50_cli.top.poller.GRACE_S", 0.0)
    one = poller("gpu-1:9464", timeout_s=0.01)
    for _ in range(3):
        assert "no response within" in seen(one).servers[0].failure
    assert len(polls) == 1
    release.set()
    join_threads("poll gpu-1:9464")
    assert one.failure == "unknown host"


def test_of_servers_that_differ_the_worst_state_is_told():
    def said(state: str) -> Variant:
        fields = dict.fromkeys(one.name for one in dataclasses.fields(Variant))
        problem = "answers are not numbers" if state == "unhealthy" else ""
        told = {"name": "digits", "state": state, "trained": True, "problem": problem}
        return Variant(**fields | told)

    clients = []
    for state in ("ready", "unhealthy", "loading"):
        client = Client("127.0.0.1:1")
        client.list_variants = lambda state=state: [said(state)]
        clients.append(client)
    statuses = VariantStatusPoller({str(number): client for number, client in enumerate(clients)})
    statuses.poll()
    known = VariantStatus("unhealthy", True, None, problem="answers are not numbers")
    assert statuses.latest() == {"digits": known}
    for client in clients:
        client.close()


def test_of_two_variants_of_a_name_the_serving_one_is_shown():
    fields = dict.fromkeys(one.name for one in dataclasses.fields(Variant))
    named = fields | {"name": "digits", "trained": True}
    client = Client("127.0.0.1:1")
    client.list_variants = lambda: [
        Variant(**named | {"state": state}) for state in ("ready", "draining")
    ]
    statuses = VariantStatusPoller({"127.0.0.1:1": client})
    statuses.poll()
    assert statuses.latest() == {"digits": VariantStatus("ready", True, None)}
    client.close()


def test_polls_are_an_interval_apart_without_catching_up(monkeypatch):
    clock, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    costs = iter((0.5, 0.0, 7.0, 0.0, 0.0))

    def poll(pollers: object) -> None:
        clock[0] += next(costs)

    monkeypatch.setattr("resnet50_cli.top.snapshot.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("resnet50_cli.top.snapshot.time.sleep", sleep)
    monkeypatch.setattr("resnet50_cli.top.snapshot.poll_all", poll)
    found = snapshots([], NO_STATUSES, 2.0)
    for _ in range(5):
        next(found)
    assert slept == [1.5, 2.0, 0.0, 2.0]


def test_json_is_whole_and_has_no_numbers_that_json_lacks():
    exported = Exported(started_s=time.time() - 60)
    exported.load("digits", default=True)
    exported.memory.set(float("nan"))
    exported.inside_bytes.set(float("inf"))
    with exporting(exported) as address:
        found = json.loads(json.dumps(seen(poller(address)).to_json(), allow_nan=False))
    assert found["servers"][0]["name"] == address
    assert found["total"]["variants"][0]["name"] == "digits"
    assert found["total"]["images_per_s"] is None
    assert found["total"]["uptime_s"] == pytest.approx(60, abs=30)


def test_poll_error_is_shown_for_its_server_only(
    monkeypatch,
):
    fetch = Poller.poll.__globals__["fetch"]
    broken = {"one"}

    def fetch_or_not(endpoint: Endpoint, timeout_s: float):
        if endpoint.name in broken:
            raise RuntimeError("dictionary changed")
        return fetch(Endpoint.of(address), timeout_s)

    monkeypatch.setattr("resnet50_cli.top.poller.fetch", fetch_or_not)
    exported = Exported()
    exported.load("digits")
    with exporting(exported) as address:
        one, other = (
            Poller(Endpoint("one", ""), 10.0, 60.0),
            Poller(Endpoint("other", ""), 10.0, 60.0),
        )
        first = seen(one, other)
        assert [each.failure for each in first.servers] == ["RuntimeError: dictionary changed", ""]
        assert first.total is not None
        broken.clear()
        assert [each.failure for each in seen(one, other).servers] == ["", ""]


def test_figures_that_cannot_be_read_are_that_servers_state(monkeypatch):
    def of(interval: object, now_s: float) -> None:
        raise ZeroDivisionError("division by zero")

    exported = Exported()
    exported.load("digits")
    with exporting(exported) as address:
        one = poller(address)
        monkeypatch.setattr("resnet50_cli.top.snapshot.ServerMetrics.of", of)
        assert seen(one).servers[0].failure == "ZeroDivisionError: division by zero"
        monkeypatch.undo()
        assert seen(one).servers[0].failure == ""


def test_unreachable_server_is_named_and_polled_again():
    class Told:
        """As a `Client` whose token file has gone, and comes back."""

        gone = True

        def list_variants(self) -> list[Variant]:
            if self.gone:
                raise FileNotFoundError("token")
            fields = dict.fromkeys(one.name for one in dataclasses.fields(Variant))
            return [Variant(**fields | {"name": "digits", "state": "ready", "trained": True})]

    client = Told()
    statuses = VariantStatusPoller({"gpu-1:50051": client})
    statuses.poll()
    assert statuses.errors() == {"gpu-1:50051": "FileNotFoundError: token"}
    exported = Exported()
    exported.load("digits")
    with exporting(exported) as address:
        one = poller(address)
        poll_all([one])
        snapshot = Snapshot.of([one], statuses, 2.0)
    text = "\n".join(line.plain for line in tables.warnings(snapshot, snapshot.total))
    assert "gpu-1:50051: listing its variants failed: FileNotFoundError: token" in text
    client.gone = False
    statuses.poll()
    assert (statuses.errors(), list(statuses.latest())) == ({}, ["digits"])
