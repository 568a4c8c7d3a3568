"""Scrapes match the results of clients, number by number."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import grpc
import pytest

from resnet50.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from resnet50_client import (
    InvalidImageError,
    OverloadedError,
    Resnet50Error,
    VariantNotFoundError,
)
from resnet50_client._aio_status import keep_status
from resnet50_server.batching.failed_batches import MAX_ATTEMPTS
from resnet50_server.cli.main import main
from resnet50_server.telemetry.metrics import SIZE_BUCKETS
from tests.support.metrics_load import JPEG, REQUEST, V2, Load, loaded
from tests.support.pictures import encode, photo_like
from tests.support.scrape import ON, Scrape, scrape, scrape_once
from tests.support.serving import (
    connected,
    serving,
    until,
)


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
