"""Queues, decode threads, the event loop and listeners in the scrape."""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import pytest

import resnet50_server.parts
from resnet50.v1 import inference_pb2
from resnet50_client import (
    AsyncClient,
    DeadlineExceededError,
    InvalidImageError,
    RetryPolicy,
    VariantNotFoundError,
)
from resnet50_server.events import EVENTS, ServerEvents
from tests.support.administering import administrator, describe
from tests.support.clients import KINDS, Caller, items
from tests.support.metrics_load import JPEG, REQUEST, V2, loaded
from tests.support.scrape import ON, Scrape, scrape, scrape_once
from tests.support.serving import DECODING, serving, until


async def test_gauges_show_queues_and_streams_at_scrape_time():
    async with loaded() as load:
        idle = await scrape(load.server)
        assert idle.one("resnet50_queue_age_seconds", variant=V2) == 0
        with load.stuck():
            first = load.stub.Classify(REQUEST)
            await until(lambda: load.batches)
            stream = load.stub.EmbedStream()
            await stream.write(
                inference_pb2.EmbedStreamRequest(config=inference_pb2.EmbedStreamConfig())
            )
            others = [asyncio.ensure_future(load.client.classify(JPEG)) for _ in range(3)]
            await until(lambda: len(load.queue.waiting) == 3)
            await until(lambda: load.server.snapshot().streams == 1)
            oldest = load.queue.oldest_arrival()
            found = await scrape(load.server)
            assert found.one("resnet50_queue_images", variant=V2) == 3
            age_s = found.one("resnet50_queue_age_seconds", variant=V2)
            assert 0 < age_s <= asyncio.get_running_loop().time() - oldest
            assert found.one("resnet50_in_flight_requests") == 4
            in_flight = found.one("resnet50_in_flight_bytes")
            assert 4 * len(JPEG) < in_flight < 4 * (len(JPEG) + 100)  # with their messages
            assert found.one("resnet50_open_streams") == 1
        await first
        await asyncio.gather(*others)
        latency = load.queue.latency
        found = await scrape(load.server)
        assert found.one("resnet50_batch_latency_alpha_seconds", variant=V2) == latency.alpha_s
        assert found.one("resnet50_batch_latency_beta_seconds", variant=V2) == latency.beta_s
        variant = await load.client.get_variant(V2)
        info = {
            "variant": V2,
            "digest": variant.digest,
            "engine": "timed",
            "device": "cpu",
            "precision": "fp32",
            "default": "true",
        }
        assert found.one("resnet50_variant_info", **info) == 1
        assert found.one("process_resident_memory_bytes") > 0


async def test_decode_threads_and_their_queue_are_exported():
    async with loaded(decode_threads=2) as load:
        pool, ended = load.server.parts.decode_pool, threading.Event()
        calls = [asyncio.ensure_future(pool.submit(ended.wait)) for _ in range(5)]
        await until(lambda: pool.busy == 2)
        found = await scrape(load.server)
        ended.set()
        await asyncio.gather(*calls)
        assert found.one("resnet50_decode_threads_busy") == 2
        assert found.one("resnet50_decode_queue_calls") == 3


async def test_calls_with_unreachable_deadlines_count_as_shed():
    slow = {"engine": "timed", "timed_alpha_ms": 500.0, "timed_beta_ms": 0.0}
    async with serving(**ON, **slow) as server, AsyncClient(server.addresses[0]) as client:
        await client.classify(JPEG)
        for _ in range(2):
            with pytest.raises(DeadlineExceededError):
                await client.classify(JPEG, timeout_s=0.4)
        found = await scrape_once(
            server, lambda found: sum(found.of("resnet50_requests_total", "code").values()) == 3
        )
        assert found.of("resnet50_shed_total", "limit") == {"deadline": 2}
        assert found.of("resnet50_images_total", "outcome") == {"answered": 1, "refused": 2}


async def test_event_loop_lag_is_measured():
    def late(found: Scrape) -> float:
        name = "resnet50_event_loop_lag_seconds"
        return found.one(f"{name}_count") - found.one(f"{name}_bucket", le="0.1")

    async with serving(**ON) as server:
        before = late(await scrape(server))
        time.sleep(0.5)  # the watch's timer is due at least once within it, 0.1 s before its end
        await scrape_once(server, lambda found: late(found) > before)


async def test_two_servers_of_a_process_count_for_themselves():
    async with (
        serving(**ON) as one,
        serving(**ON) as two,
        AsyncClient(one.addresses[0]) as client,
    ):
        await client.classify(JPEG)
        assert one.metrics_url != two.metrics_url
        assert (await scrape(one)).of("resnet50_images_total", "outcome") == {"answered": 1}
        assert (await scrape(two)).of("resnet50_images_total", "outcome") == {}


async def test_clients_cannot_create_series():
    """Labels are made of what the server knows, never of what callers send."""
    async with loaded() as load:
        metadata = (("x-request-id", "mine"), ("x-priority", "bulk"), ("user", "me"))
        await load.stub.Classify(REQUEST, metadata=metadata)
        before = set(await scrape(load.server))
        for number in range(3):
            with pytest.raises(VariantNotFoundError):
                await load.client.classify(JPEG, variant=f"made-up-{number}")
            with pytest.raises(grpc.RpcError):
                await load.channel.unary_unary(f"/resnet50.v1.InferenceService/Made{number}")(b"")
        new = {
            dict(labels).get("variant", "") for _, labels in set(await scrape(load.server)) - before
        }
        assert new <= {""}


def fail(*_: object) -> None:
    raise KeyError("a listener's own mistake")


# A listener that raises for each event.
Broken = type("Broken", (ServerEvents,), dict.fromkeys(EVENTS, fail))


@pytest.mark.parametrize("kind", KINDS)
async def test_failing_listener_is_counted_and_fails_no_request(kind, monkeypatch):
    monkeypatch.setattr(resnet50_server.parts, "RequestLog", Broken)
    async with (
        serving(log_level="debug", **DECODING, **ON) as server,
        Caller(kind, server.addresses[0], retry=RetryPolicy(attempts=1)) as caller,
    ):
        for _ in range(3):
            assert await caller.classify(JPEG)
        frames = [one async for one in items(caller, "classify_stream", [JPEG, b"no image"])]
        assert [type(one.error) for one in frames] == [type(None), InvalidImageError]
        found = await scrape(server)
        assert found.one("resnet50_telemetry_errors_total", observer="Broken") >= 3 * 3
        assert found.one("resnet50_telemetry_errors_total", observer="Metrics") == 0
        # Those that work have seen everything.
        assert found.of("resnet50_images_total", "outcome") == {"answered": 4, "refused": 1}
        assert found.one("resnet50_ready") == 1


async def test_variant_that_is_unloaded_leaves_no_series(tmp_path):
    describe(tmp_path / "variants" / "v")
    async with administrator(
        tmp_path / "variants", response_cache_bytes=2**20, **ON, **DECODING
    ) as admin:
        before = {labels for _, labels in await scrape(admin.server)}
        for _ in range(2):
            await admin.load("v")
            await admin.classify("v")
            found = await scrape(admin.server)
            assert found.one("resnet50_cache_lookups_total", variant="v", outcome="miss") == 1
            assert found.one("resnet50_images_total", variant="v", outcome="answered") == 1
            await admin.unload("v")
            after = {labels for _, labels in await scrape(admin.server)}
            assert not [labels for labels in after if ("variant", "v") in labels]
            assert before <= after
