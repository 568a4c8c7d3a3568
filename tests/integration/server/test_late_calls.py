"""Callers that leave, and calls that are late, never reach the engine."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import grpc

import resnet50_server.inference.pipeline
from resnet50_server.server import Server
from tests.support.gated_server import SERVING, classify, gated, health
from tests.support.serving import DECODING, connected, serving, until


def waiting(server: Server) -> int:
    return sum(variant.pending for variant in server.snapshot().variants)


async def test_cancelled_call_never_reaches_the_engine(monkeypatch):
    async with gated(monkeypatch) as (server, engine), connected(server) as channel:
        running = classify(channel)
        await until(lambda: engine.batches == [1])
        leaving, staying = classify(channel), classify(channel)
        await until(lambda: waiting(server) == 2)
        leaving.cancel()
        await until(lambda: waiting(server) == 1)
        engine.gate.set()
        assert (await running).timing.batch_size == 1
        assert (await staying).timing.batch_size == 1
        assert engine.batches == [1, 1]
        assert (server.snapshot().requests, server.snapshot().bytes) == (0, 0)


async def test_cancel_during_a_batch_does_not_disturb_it(monkeypatch):
    async with (
        gated(monkeypatch, max_queue_delay_ms=10_000, max_batch_size=2) as (server, engine),
        connected(server) as channel,
    ):
        leaving, staying = classify(channel), classify(channel)
        await until(lambda: engine.batches == [2])
        leaving.cancel()
        await until(lambda: server.snapshot().requests == 1)
        engine.gate.set()
        assert (await staying).timing.batch_size == 2
        again = await asyncio.gather(classify(channel), classify(channel))
        assert [reply.timing.batch_size for reply in again] == [2, 2]


async def test_call_expiring_in_the_queue_never_reaches_the_engine(monkeypatch):
    async with gated(monkeypatch) as (server, engine), connected(server) as channel:
        running = classify(channel)
        await until(lambda: engine.batches == [1])
        late = classify(channel, timeout=1.5)
        await until(lambda: waiting(server) == 1)
        assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: waiting(server) == 0 and server.snapshot().requests == 1)
        engine.gate.set()
        await running
        await classify(channel)
        assert engine.batches == [1, 1]


class ObservedDecode:
    """The real decode, which waits for its gate; knows which threads came."""

    def __init__(self, monkeypatch) -> None:
        self.gate = threading.Event()
        self.threads: list[threading.Thread] = []
        self.left = 0
        module: Any = resnet50_server.inference.pipeline
        self._decode = module.decode
        monkeypatch.setattr(module, "decode", self)

    def __call__(self, *arguments, **limits):
        self.threads.append(threading.current_thread())
        assert self.gate.wait(60)
        self.left += 1
        return self._decode(*arguments, **limits)


async def test_call_expiring_in_decoding_never_reaches_the_engine(monkeypatch):
    decode = ObservedDecode(monkeypatch)
    async with gated(monkeypatch) as (server, engine), connected(server) as channel:
        late = classify(channel, timeout=1.5)
        await until(lambda: len(decode.threads) == 1)
        assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: server.snapshot().requests == 0)
        decode.gate.set()
        engine.gate.set()
        await classify(channel)
        assert engine.batches == [1]


async def test_decoding_leaves_the_event_loop_free(monkeypatch):
    decode = ObservedDecode(monkeypatch)
    async with serving(decode_threads=2, **DECODING) as server, connected(server) as channel:
        calls = [classify(channel) for _ in range(2)]
        await until(lambda: len(decode.threads) == 2)  # both at once
        assert await health(channel) == {SERVING}
        assert decode.left == 0
        decode.gate.set()
        for call in calls:
            await call
    assert threading.main_thread() not in decode.threads
    assert len(set(decode.threads)) == 2
