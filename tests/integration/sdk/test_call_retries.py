"""Retries of single calls through both clients."""

from __future__ import annotations

import asyncio
import socket
import threading

import grpc
import pytest

import resnet50_client
from resnet50_client import CallObserver, RetryPolicy
from resnet50_server.batching.deadlines import DeadlinePolicy
from resnet50_server.errors import QueueFull
from tests.support.clients import Caller
from tests.support.pictures import encode, photo_like
from tests.support.scripted_calls import scripted
from tests.support.serving import gate, server_processes, serving, until

PNG = encode(photo_like(64, 48))


async def test_unavailable_is_retried_with_images_of_any_size(kind):
    large = bytes(3 * 2**20)
    down = grpc.StatusCode.UNAVAILABLE
    with scripted(down, down) as (address, servicer):
        policy = RetryPolicy(attempts=3, initial_backoff_s=0.01, max_backoff_s=0.01)
        async with Caller(kind, address, retry=policy) as client:
            await client.classify(large)
        assert servicer.calls == 3


class Retries(CallObserver):
    """Tells when the attempt of a number has failed and another will be made."""

    def __init__(self, count: int) -> None:
        self.errors: list[resnet50_client.Resnet50Error] = []
        self.count = count
        self.made = threading.Event()

    def call_retried(self, call, error, pause_s):
        self.errors.append(error)
        if len(self.errors) == self.count:
            self.made.set()


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


QUICK = {"initial_backoff_s": 0.01, "max_backoff_s": 0.01}


@pytest.mark.parametrize("name", ["classify", "variants"])
async def test_unary_call_goes_on_until_a_server_is_there(kind, name):
    address, retries = free_address(), Retries(10)
    policy = {"retry": RetryPolicy(**QUICK), "observers": [retries], "timeout_s": 300}
    async with Caller(kind, address, **policy) as client:
        call = asyncio.ensure_future(
            client.classify(PNG) if name == "classify" else client.list_variants()
        )
        assert await asyncio.to_thread(retries.made.wait, 60)
        async with serving(listen=[address]):
            assert len(await call)


async def test_variant_change_is_retried_only_before_it_is_sent(kind):
    retries = Retries(10)
    policy = {"retry": RetryPolicy(**QUICK), "observers": [retries], "timeout_s": 300}
    address = free_address()
    async with Caller(kind, address, **policy) as client:
        call = asyncio.ensure_future(client.unload_variant("unknown"))
        assert await asyncio.to_thread(retries.made.wait, 60)
        assert all(error.never_sent for error in retries.errors)
        async with serving(listen=[address]):
            with pytest.raises(resnet50_client.PermissionDeniedError):
                await call


async def test_call_without_a_server_ends_by_deadline_with_attempts(kind):
    async with Caller(kind, "127.0.0.1:1", retry=RetryPolicy(**QUICK)) as client:
        says = r"127\.0\.0\.1:1: .*refused.*; tried \d+ times in [\d.]+ s$"
        with pytest.raises(resnet50_client.UnavailableError, match=says):
            await client.classify(PNG, timeout_s=0.5)


async def test_retry_budget_of_the_caller_ends_before_the_deadline(kind):
    down = grpc.StatusCode.UNAVAILABLE
    with scripted(*[down] * 9) as (address, servicer):
        policy = RetryPolicy(attempts=7, **QUICK)
        async with Caller(kind, address, retry=policy, timeout_s=300) as client:
            with pytest.raises(resnet50_client.UnavailableError, match="tried 7 times"):
                await client.classify(PNG)
        assert servicer.calls == 7


@pytest.mark.parametrize("code", ["INTERNAL", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "ABORTED"])
async def test_nothing_else_is_retried(kind, code):
    with scripted(grpc.StatusCode[code]) as (address, servicer):
        async with Caller(kind, address) as client:
            with pytest.raises(resnet50_client.Resnet50Error):
                await client.classify(PNG)
        assert servicer.calls == 1


async def test_overload_is_retried_when_asked(kind):
    settings = {"engine": "timed", "timed_alpha_ms": 30, "max_queue_size": 1, "max_batch_size": 1}
    async with serving(**settings) as server:
        policy = RetryPolicy(overload_attempts=1000)
        opened = gate(server)
        async with (
            Caller(kind, server.addresses[0]) as hasty,
            Caller(kind, server.addresses[0], retry=policy) as patient,
        ):
            calls = [asyncio.ensure_future(hasty.classify(PNG))]
            try:
                # One computes, then one waits; the others find the queue full.
                await until(lambda: server.snapshot().batches["cpu"])
                calls += [asyncio.ensure_future(hasty.classify(PNG)) for _ in range(5)]
                await until(lambda: sum(call.done() for call in calls) == 4)
            finally:
                opened.set()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            answered = await asyncio.gather(*(patient.classify(PNG) for _ in range(6)))
    overloaded = [one for one in outcomes if isinstance(one, Exception)]
    assert len(overloaded) == 4
    for error in overloaded:
        assert isinstance(error, resnet50_client.OverloadedError)
        assert error.retry_after_s > 0
    assert len(answered) == 6


async def test_two_servers_take_turns(kind):
    async with (
        serving(variants=["IMAGENET1K_V1"]) as one,
        serving(variants=["IMAGENET1K_V2"]) as two,
        Caller(kind, [one.addresses[0], two.addresses[0]]) as client,
    ):
        seen = set()
        # A second connection may be made a moment after the first; then the turns are strict.
        for _ in range(200):
            seen.add((await client.classify(PNG)).variant.name)
            if len(seen) == 2:
                break
        turns = [(await client.classify(PNG)).variant.name for _ in range(10)]
    assert seen == {"IMAGENET1K_V1", "IMAGENET1K_V2"}
    assert turns.count("IMAGENET1K_V1") == 5


async def test_killed_server_costs_no_call(kind):
    with server_processes() as start:
        arguments = ("--variants", "IMAGENET1K_V2", "--engine", "null")
        processes = [start(*arguments), start(*arguments)]
        addresses = [process.wait_until_listening() for process in processes]
        async with Caller(kind, addresses) as client:
            await asyncio.gather(*(client.classify(PNG) for _ in range(20)))
            calls = asyncio.gather(*(client.classify(PNG) for _ in range(100)))
            await asyncio.sleep(0)
            processes[0].process.kill()
            assert len(await calls) == 100
            assert len(await asyncio.gather(*(client.classify(PNG) for _ in range(100)))) == 100


async def test_closing_a_client_that_waits_to_retry_ends_its_calls(kind, monkeypatch):
    refused = asyncio.Event()
    check_capacity = DeadlinePolicy.check_capacity

    def watched(*arguments, **options):
        try:
            return check_capacity(*arguments, **options)
        except QueueFull:
            refused.set()
            raise

    monkeypatch.setattr(DeadlinePolicy, "check_capacity", watched)
    settings = {"engine": "timed", "timed_alpha_ms": 300, "max_queue_size": 1, "max_batch_size": 1}
    async with serving(**settings) as server:
        policy = RetryPolicy(overload_attempts=1000)
        client = Caller(kind, server.addresses[0], retry=policy)
        calls = [asyncio.ensure_future(client.classify(PNG)) for _ in range(8)]
        await refused.wait()
        await client.close()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    kinds = {type(outcome).__name__ for outcome in outcomes}
    assert "CallCancelledError" in kinds
    assert kinds <= {"CallCancelledError", "Classification"}
