"""Scrapes match the results of clients, number by number."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter

import grpc
import pytest

import resnet50_server.server
from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from resnet50_client import (
    AsyncClient,
    DeadlineExceededError,
    InvalidImageError,
    OverloadedError,
    Resnet50Error,
    RetryPolicy,
    VariantNotFoundError,
)
from resnet50_client._aio_status import keep_status
from resnet50_server.batching.retry import MAX_ATTEMPTS
from resnet50_server.cli.main import main
from resnet50_server.events import ServerEvents
from resnet50_server.telemetry.metrics import SIZE_BUCKETS
from tests.support.administering import administrator, describe
from tests.support.clients import KINDS, Caller, items
from tests.support.pictures import encode, photo_like
from tests.support.scrape import ON, Scrape, scrape, scrape_once
from tests.support.serving import (
    DECODING,
    connected,
    engines_of,
    queues_of,
    serving,
    until,
)

V2 = "IMAGENET1K_V2"
JPEG = encode(photo_like(320, 240), "JPEG")
REQUEST = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=JPEG))


class Load:
    """Calls a server, and records the outcomes."""

    def __init__(self, server, client: AsyncClient, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.client = client
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self.channel = channel
        (self.engine,) = engines_of(server)
        (self.queue,) = queues_of(server)
        self.calls: Counter[tuple[str, str, str]] = Counter()
        self.images: Counter[str] = Counter()
        self.shed: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.timings: list = []
        self.batches: list[int] = []
        self.failed_batches = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.broken = False
        run = self.engine.run

        def counted(images, *arguments):
            self.batches.append(len(images))
            self.go_on.wait(60)
            if self.broken:
                raise RuntimeError("as the test wants it")
            return run(images, *arguments)

        self.engine.run = counted

    @contextlib.contextmanager
    def stuck(self):
        """Keep the engine from ending a batch."""
        self.go_on.clear()
        try:
            yield
        finally:
            self.go_on.set()

    def answered(self, method: str, timing) -> None:
        self.calls[method, V2, "OK"] += 1
        self.images["answered"] += 1
        self.timings.append(timing)

    def took(self, stage: str) -> float:
        return sum(getattr(timing, f"{stage}_ms") for timing in self.timings) / 1e3

    async def inside(self, requests: int) -> None:
        await until(lambda: self.server.snapshot().requests == requests)


@contextlib.asynccontextmanager
async def loaded(**settings):
    async with (
        serving(**ON, **DECODING, **settings) as server,
        connected(server) as channel,
        AsyncClient(server.addresses[0]) as client,
    ):
        yield Load(server, client, channel)


async def single_calls(load: Load) -> None:
    for result in await asyncio.gather(*(load.client.classify(JPEG) for _ in range(5))):
        load.answered("Classify", result.timing)
    for _ in range(3):
        load.answered("Embed", (await load.client.embed(JPEG)).timing)
    # Random pixels do not shrink: too long for a single message, so the SDK uploads them.
    large = encode(photo_like(1800, 1400), "BMP")
    for _ in range(2):
        load.answered("ClassifyUpload", (await load.client.classify(large)).timing)
    assert len(await load.client.list_variants()) == 1
    load.calls["ListVariants", "", "OK"] += 1


async def refused_calls(load: Load) -> None:
    for image, fault in (
        (b"no image at all", "unsupported"),
        (JPEG[:200], "truncated"),
        (b"GIF89a", "truncated"),
    ):
        with pytest.raises(InvalidImageError):
            await load.client.classify(image)
        load.calls["Classify", V2, "INVALID_ARGUMENT"] += 1
        load.images["refused"] += 1
        load.faults[fault] += 1
    with pytest.raises(VariantNotFoundError):
        await load.client.embed(JPEG, variant="unknown")
    load.calls["Embed", "", "NOT_FOUND"] += 1
    load.images["refused"] += 1


async def streams(load: Load) -> None:
    async for answer in load.client.classify_stream([JPEG, JPEG, b"no image", JPEG]):
        if isinstance(answer.error, Resnet50Error):
            load.images["refused"] += 1
            load.faults["unsupported"] += 1
        else:
            load.images["answered"] += 1
            load.timings.append(answer.result.timing)
    load.calls["ClassifyStream", V2, "OK"] += 1
    config = inference_pb2.EmbedStreamConfig(delivery=inference_pb2.DELIVERY_LATEST)
    call = load.stub.EmbedStream()
    await call.write(inference_pb2.EmbedStreamRequest(config=config))
    with load.stuck():
        for number in range(6):
            frame = inference_pb2.Frame(frame_id=number, image=REQUEST.image)
            await call.write(inference_pb2.EmbedStreamRequest(frame=frame))
            await until(lambda: load.server.snapshot().requests == 1)
        # Four of the five that came while the first was inside.
        dropped = [(await call.read()).frame_id for _ in range(4)]
    await call.done_writing()
    replies = []
    while (reply := await call.read()) is not grpc.aio.EOF:
        replies.append(reply)
    assert sorted(dropped + [reply.frame_id for reply in replies]) == list(range(6))
    for reply in replies:
        load.images["answered"] += 1
        load.timings.append(Milliseconds(reply.timing))
    load.images["dropped"] += 4
    load.calls["EmbedStream", V2, "OK"] += 1


class Milliseconds:
    """A `Timing` of the contract with the SDK's names."""

    def __init__(self, timing) -> None:
        for stage in ("decode", "queue", "compute", "total"):
            setattr(self, f"{stage}_ms", getattr(timing, f"{stage}_us") / 1e3)


async def too_many_calls(load: Load) -> None:
    with load.stuck():
        inside = [asyncio.ensure_future(load.client.classify(JPEG)) for _ in range(6)]
        await load.inside(6)
        for _ in range(4):
            with pytest.raises(OverloadedError, match="max_requests"):
                await load.client.classify(JPEG)
            load.calls["Classify", "", "RESOURCE_EXHAUSTED"] += 1
            load.images["refused"] += 1
            load.shed["max_requests"] += 1
    for result in await asyncio.gather(*inside):
        load.answered("Classify", result.timing)


async def cancelled_calls(load: Load) -> None:
    unsent = load.channel.stream_unary("/resnet50.v1.InferenceService/Classify")
    call = keep_status(unsent())
    await until(lambda: load.server.snapshot().receiving == 1)
    call.cancel()
    await until(lambda: load.server.snapshot().receiving == 0)
    load.calls["Classify", "", "CANCELLED"] += 1
    load.cancelled["receive"] += 1
    upload = load.stub.ClassifyUpload()
    await upload.write(
        inference_pb2.ClassifyUploadRequest(options=inference_pb2.ClassifyUploadOptions())
    )
    await upload.write(inference_pb2.ClassifyUploadRequest(chunk=JPEG[:100]))
    await cancel_at(
        load,
        "ClassifyUpload",
        "upload",
        lambda: upload,
        # Its start has been looked at, too.
        lambda: load.server.snapshot().bytes == 100 and not load.server.parts.decode_pool.busy,
    )
    pool, ended = load.server.parts.decode_pool, threading.Event()
    blocking = [asyncio.ensure_future(pool.submit(ended.wait)) for _ in range(pool.threads)]
    await until(lambda: pool.busy == pool.threads)
    await cancel_at(
        load, "Classify", "decode", lambda: load.stub.Classify(REQUEST), lambda: pool.waiting == 1
    )
    ended.set()
    await asyncio.gather(*blocking)
    with load.stuck():
        computed = len(load.batches)
        first = load.stub.Classify(REQUEST)
        await until(lambda: len(load.batches) == computed + 1)
        for _ in range(2):
            await cancel_at(
                load,
                "Classify",
                "queue",
                lambda: load.stub.Classify(REQUEST),
                lambda: len(load.queue.waiting) == 1,
                inside=1,
            )
        await cancel_at(load, "Classify", "batch", lambda: first, lambda: True)
    # The frames of a cancelled stream are counted one by one.
    with load.stuck():
        computed = len(load.batches)
        call = load.stub.ClassifyStream()
        config = inference_pb2.ClassifyStreamConfig()
        await call.write(inference_pb2.ClassifyStreamRequest(config=config))
        for number in range(4):
            frame = inference_pb2.Frame(frame_id=number, image=REQUEST.image)
            await call.write(inference_pb2.ClassifyStreamRequest(frame=frame))
            await until(lambda: len(load.batches) == computed + 1)
        await until(lambda: len(load.queue.waiting) == 3)
        call.cancel()
        await load.inside(0)
    load.calls["ClassifyStream", V2, "CANCELLED"] += 1
    load.cancelled.update({"batch": 1, "queue": 3})


async def cancel_at(load: Load, method, stage, start, arrived, inside=0) -> None:
    """Start a call, and cancel it once it has arrived where it should."""
    call = start()
    await load.inside(inside + 1)
    await until(arrived)
    call.cancel()
    await load.inside(inside)
    load.calls[method, V2, "CANCELLED"] += 1
    load.cancelled[stage] += 1


async def failing_engine(load: Load) -> None:
    (scheduler,) = load.server.parts.devices.schedulers.values()
    await until(lambda: scheduler.idle)
    load.broken = True
    for _ in range(2):
        with pytest.raises(Resnet50Error):
            await load.client.classify(JPEG)
        load.calls["Classify", V2, "INTERNAL"] += 1
        load.images["refused"] += 1
        load.failed_batches += MAX_ATTEMPTS
    load.broken = False


def all_ended(load: Load, found: Scrape) -> bool:
    ended = sum(found.of("resnet50_requests_total", "method", "variant", "code").values())
    return ended == load.calls.total() and not found.one("resnet50_in_flight_requests")


async def test_scrape_matches_a_load_run_number_by_number():
    async with loaded(max_requests=6) as load:
        before = await scrape(load.server)
        await single_calls(load)
        await refused_calls(load)
        await streams(load)
        await too_many_calls(load)
        await cancelled_calls(load)
        await failing_engine(load)
        found = await scrape_once(load.server, lambda found: all_ended(load, found))

        assert found.of("resnet50_requests_total", "method", "variant", "code") == load.calls
        assert found.of("resnet50_images_total", "variant", "outcome") == {
            (V2, outcome): count for outcome, count in load.images.items()
        } | {
            # One named no variant that is served, four were refused before theirs was read.
            (V2, "refused"): load.images["refused"] - 5,
            ("", "refused"): 5,
        }
        assert found.of("resnet50_frames_dropped_total", "variant") == {V2: 4}
        assert found.of("resnet50_request_duration_seconds_count", "method", "variant") == {
            (method, variant): count
            for (method, variant, code), count in load.calls.items()
            if code == "OK" and not method.endswith("Stream")
        }
        assert found.of("resnet50_shed_total", "limit") == load.shed
        assert found.of("resnet50_cancelled_total", "stage") == load.cancelled
        assert found.of("resnet50_decode_failures_total", "reason") == load.faults
        assert found.of("resnet50_unauthenticated_total", "reason") == {}

        answered = load.images["answered"]
        for stage in ("decode", "queue", "compute", "total"):
            labels = {"variant": V2, "stage": stage}
            name = "resnet50_stage_duration_seconds"
            assert found.one(f"{name}_count", **labels) == answered
            # Replies say whole microseconds, rounded down.
            rounded_s = found.one(f"{name}_sum", **labels) - load.took(stage)
            assert -1e-9 <= rounded_s <= answered * 1e-6

        assert found.one("resnet50_batch_size_count", variant=V2) == len(load.batches)
        assert found.one("resnet50_batch_size_sum", variant=V2) == sum(load.batches)
        for size in SIZE_BUCKETS:
            labels = {"variant": V2, "le": str(size)}
            up_to = sum(batch <= size for batch in load.batches)
            assert found.one("resnet50_batch_size_bucket", **labels) == up_to
        assert found.of("resnet50_batch_failures_total", "variant") == {V2: load.failed_batches}
        computed_s = sum(timing.compute_ms for timing in load.timings) / 1e3
        busy_s = found.one("resnet50_engine_busy_seconds_total", device="cpu")
        assert before.one("resnet50_engine_busy_seconds_total", device="cpu") < busy_s
        assert computed_s / max(load.batches) <= busy_s

        for name in ("in_flight_requests", "in_flight_bytes", "open_streams", "decode_queue_calls"):
            assert found.one(f"resnet50_{name}") == 0, name


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
            assert found.one("resnet50_in_flight_bytes") == 4 * len(JPEG)
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


async def test_unauthenticated_requests_are_counted_by_reason(tmp_path, capsys):
    path = tmp_path / "tokens.toml"
    assert main(["tokens", "new", "camera", "--file", str(path)]) == 0
    secret = capsys.readouterr().out.strip()
    async with serving(**ON, tokens_file=path) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        admin = variant_pb2_grpc.VariantServiceStub(channel)
        load = variant_pb2.LoadVariantRequest(name="mine")
        for call, request, token in (
            (stub.Classify, REQUEST, secret),
            (stub.Classify, REQUEST, None),
            (stub.Classify, REQUEST, "made-up"),
            (stub.Classify, REQUEST, "made-up"),
            (admin.LoadVariant, load, secret),
        ):
            metadata = () if token is None else (("authorization", f"Bearer {token}"),)
            with contextlib.suppress(grpc.RpcError):
                await call(request, metadata=metadata)
        found = await scrape_once(
            server,
            lambda found: sum(found.of("resnet50_requests_total", "code", "method").values()) == 5,
        )
        assert found.of("resnet50_requests_total", "code", "method") == {
            ("OK", "Classify"): 1,
            ("UNAUTHENTICATED", "Classify"): 3,
            ("PERMISSION_DENIED", "LoadVariant"): 1,
        }
        assert found.of("resnet50_unauthenticated_total", "reason") == {
            "TOKEN_MISSING": 1,
            "TOKEN_UNKNOWN": 2,
            "SCOPE_MISSING": 1,
        }


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


async def test_expired_call_is_counted_as_deadline_exceeded():
    async with loaded() as load:
        await load.client.classify(JPEG)
        with load.stuck():
            late = load.stub.Classify(REQUEST, timeout=0.5)
            config = inference_pb2.ClassifyStreamConfig()
            frame = inference_pb2.Frame(image=REQUEST.image)
            stream = load.stub.ClassifyStream(timeout=0.5)
            await stream.write(inference_pb2.ClassifyStreamRequest(config=config))
            await stream.write(inference_pb2.ClassifyStreamRequest(frame=frame))
            cancelled = load.stub.Classify(REQUEST, timeout=60.0)
            await load.inside(3)
            cancelled.cancel()
            await load.inside(2)
            for call in (late, stream):
                assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await load.inside(0)
        expected = {
            ("Classify", "OK"): 1,
            ("Classify", "CANCELLED"): 1,
            ("Classify", "DEADLINE_EXCEEDED"): 1,
            ("ClassifyStream", "DEADLINE_EXCEEDED"): 1,
        }
        found = await scrape_once(
            load.server,
            lambda found: len(found.of("resnet50_requests_total", "method", "code")) == 4,
        )
        assert found.of("resnet50_requests_total", "method", "code") == expected
        durations = found.of("resnet50_request_duration_seconds_count", "method")
        assert durations == {"Classify": 1}


class Broken(ServerEvents):
    """Fails on everything that it is told."""

    def __getattribute__(self, name: str):
        if name in vars(ServerEvents) and not name.startswith("_"):
            raise KeyError(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("kind", KINDS)
async def test_failing_listener_is_counted_and_fails_no_request(kind, monkeypatch):
    monkeypatch.setattr(resnet50_server.server, "RequestLog", Broken)
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
