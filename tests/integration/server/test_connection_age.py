"""Connections end at their age; calls in flight on them have the grace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from resnet50_client import AsyncClient
from tests.support.gated_server import PNG, classify, gated
from tests.support.serving import connected, serving, until

# gRPC makes it up to a tenth longer or shorter.
AGE_S = 0.2


async def left(channel: grpc.aio.Channel) -> None:
    """Wait until the server has told a channel to use its connection no longer."""
    while (state := channel.get_state()) is not grpc.ChannelConnectivity.IDLE:
        await channel.wait_for_state_change(state)


async def test_call_in_flight_at_the_end_of_the_age_completes_within_the_grace(monkeypatch):
    ages = {"max_connection_age_s": AGE_S, "max_connection_age_grace_s": 300}
    async with gated(monkeypatch, **ages) as (server, engine), connected(server) as channel:
        running = classify(channel)
        await until(lambda: engine.batches == [1])
        await left(channel)
        assert not running.done()
        engine.gate.set()
        assert (await running).timing.batch_size == 1
        # The channel connects again for the next call.
        assert (await classify(channel)).timing.batch_size == 1


async def test_call_that_outlasts_the_grace_ends_with_unavailable(monkeypatch):
    ages = {"max_connection_age_s": AGE_S, "max_connection_age_grace_s": 1}
    async with gated(monkeypatch, **ages) as (server, engine), connected(server) as channel:
        assert await classify(channel).code() is grpc.StatusCode.UNAVAILABLE
        assert engine.batches == [1]


async def test_stream_resumes_on_new_connections_and_has_each_answer_once():
    ages = {"max_connection_age_s": AGE_S, "max_connection_age_grace_s": 1}
    sent, answered = [], []

    async with serving(**ages) as server, AsyncClient(server.addresses[0]) as client:

        async def frames() -> AsyncIterator[bytes]:
            while stream.stats.resumes < 2:
                sent.append(len(sent))
                yield PNG
                await asyncio.sleep(0.01)  # as a camera

        stream = client.classify_stream(frames())
        async for answer in stream:
            assert answer.result is not None, answer.error
            answered.append(answer.frame_id)
    assert answered == sent
    assert (stream.stats.answered, stream.stats.failed) == (len(sent), 0)
