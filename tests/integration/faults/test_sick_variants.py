"""A variant that fails is out of service; the server and its other variants keep serving."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import sick_variant
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc, variant_pb2
from resnet50_client import RetryPolicy, ServerError, UnavailableError
from resnet50_server.batching import variant_health
from resnet50_server.batching.failed_batches import MAX_CONSECUTIVE_FAILURES
from resnet50_server.batching.variant_health import MIN_NON_FINITE
from resnet50_server.engines.base import Engine
from resnet50_server.rollout.split import Split
from tests.support.administering import administrator, describe, refused
from tests.support.clients import KINDS, Caller, items
from tests.support.pictures import encode, photo_like, picture
from tests.support.scrape import ON, get, scrape
from tests.support.serving import DECODING, connected, queues_of, serving, until

V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
BOTH = {"variants": [V2, V1], **DECODING}  # V2 is the server's default
PNG = encode(picture())
JPEG = encode(photo_like(320, 240), "JPEG")
ONCE = RetryPolicy(attempts=1)
Health = health_pb2.HealthCheckResponse
NAME = "resnet50.v1.InferenceService/"
PROBLEM = f"{MIN_NON_FINITE} of its last {MIN_NON_FINITE} results have NaN or Inf"


class Sick:
    """Makes an engine answer with NaN, or fail, until it is cured.

    Args:
        engine: Which one.
        fault: The exception that it raises; None to answer with NaN.
    """

    def __init__(self, engine: Engine, fault: Exception | None = None) -> None:
        self.batches = 0
        self._engine, self._run, self._fault = engine, engine.run, fault
        engine.run = self._run_badly

    def cure(self) -> None:
        self._engine.run = self._run

    def _run_badly(self, *arguments):
        self.batches += 1
        if self._fault is not None:
            raise self._fault
        output = self._run(*arguments)
        return output._replace(probabilities=np.full_like(output.probabilities, np.nan))


def engine_of(server, name: str) -> Engine:
    (engine,) = [queue.engine for queue in queues_of(server) if queue.name == name]
    return engine


@contextlib.asynccontextmanager
async def watching(channel: grpc.aio.Channel, service: str) -> AsyncIterator[Callable]:
    """Give what returns the next status of a name of the health service."""
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))

    async def following() -> int:
        return (await call.read()).status

    try:
        yield following
    finally:
        call.cancel()


async def fail_often(caller: Caller, variant: str = V1, times: int = MIN_NON_FINITE) -> None:
    for _ in range(times):
        with pytest.raises(ServerError):
            await caller.classify(JPEG, variant=variant)


@pytest.mark.parametrize("kind", KINDS)
async def test_variant_that_answers_nan_is_refused_and_others_serve(kind):
    async with (
        serving(**BOTH, **ON) as server,
        connected(server) as channel,
        Caller(kind, server.addresses[0], retry=ONCE) as caller,
        watching(channel, "") as of_server,
        watching(channel, NAME + V1) as of_v1,
        watching(channel, NAME + V2) as of_v2,
    ):
        for following in (of_server, of_v1, of_v2):
            assert await following() == Health.SERVING
        sick = Sick(engine_of(server, V1))
        await fail_often(caller)
        computed = sick.batches
        for image in (JPEG, b"no image at all, but that is not even looked at"):
            for call in (caller.classify, caller.embed):
                with pytest.raises(
                    UnavailableError,
                    match=f"variant {V1} is out of service: {PROBLEM}; ask for another variant,",
                ):
                    await call(image, variant=V1)
        assert sick.batches == computed
        for _ in range(3):
            assert (await caller.classify(JPEG)).variant.name == V2

        assert await of_v1() == Health.NOT_SERVING
        checking = health_pb2_grpc.HealthStub(channel)
        for service in ("", "resnet50.v1.InferenceService", NAME + V2):
            request = health_pb2.HealthCheckRequest(service=service)
            assert (await checking.Check(request)).status == Health.SERVING
        assert await get(server, "/readyz") == (200, "ok\n")
        assert {one.name: (one.state, one.problem) for one in await caller.list_variants()} == {
            V2: ("ready", None),
            V1: ("unhealthy", PROBLEM),
        }
        assert (await caller.get_variant(V1)).state == "unhealthy"
        found = await scrape(server)
        assert found.one("resnet50_variant_healthy", variant=V1) == 0
        assert found.one("resnet50_variant_healthy", variant=V2) == 1
        assert found.one("resnet50_shed_total", limit="unhealthy") == 4
        assert found.one("resnet50_ready") == 1
        for changes in (of_server, of_v2):  # nothing was said but SERVING
            following = asyncio.ensure_future(changes())
            server.parts.health.update()
            await caller.health()
            assert not following.done()
            following.cancel()


async def test_refusal_says_to_programs_that_it_is_the_variant():
    async with (
        serving(**BOTH) as server,
        connected(server) as channel,
        Caller(KINDS[1], server.addresses[0], retry=ONCE) as caller,
    ):
        Sick(engine_of(server, V1))
        await fail_often(caller)
        request = inference_pb2.ClassifyRequest(
            options=inference_pb2.ClassifyOptions(variant=V1), image=image_pb2.Image(encoded=PNG)
        )
        call = inference_pb2_grpc.InferenceServiceStub(channel).Classify(request)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        metadata = dict(await call.trailing_metadata())
        info = error_details_pb2.ErrorInfo()

        status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
        assert any(detail.Unpack(info) for detail in status.details)
        assert info.reason == "VARIANT_UNHEALTHY"


async def test_only_the_default_variant_decides_readiness(tmp_path):
    (tmp_path / "variants").mkdir()
    async with (
        administrator(tmp_path / "variants", **BOTH, **ON) as admin,
        connected(admin.server) as channel,
        watching(channel, "") as of_server,
        watching(channel, NAME + V1) as of_v1,
    ):
        assert await of_server() == await of_v1() == Health.SERVING
        Sick(engine_of(admin.server, V2))
        for _ in range(MIN_NON_FINITE):
            with refused("INTERNAL", "internal error"):
                await admin.classify("")
        assert await of_server() == Health.NOT_SERVING
        reason = f"variant {V2}, the default: {PROBLEM}\n"
        assert await get(admin.server, "/readyz") == (503, reason)
        assert (await get(admin.server, "/livez"))[0] == 200
        # Callers that know of the other one are answered.
        assert (await admin.classify(V1)).variant.name == V1
        with refused("UNAVAILABLE", f"variant {V2} is out of service"):
            await admin.classify("")
        request = variant_pb2.SetDefaultVariantRequest(name=V1)
        await admin.variants.SetDefaultVariant(request, metadata=admin.token())
        assert await of_server() == Health.SERVING
        assert (await admin.classify("")).variant.name == V1
        request = variant_pb2.SetDefaultVariantRequest(name=V2)
        with refused("FAILED_PRECONDITION", f"name: {V2} is out of service: {PROBLEM}"):
            await admin.variants.SetDefaultVariant(request, metadata=admin.token())


@pytest.mark.parametrize("kind", KINDS)
async def test_variant_recovers_once_it_passes_the_self_test(kind, monkeypatch, caplog):
    monkeypatch.setattr(variant_health, "RETEST_S", 0.02)
    monkeypatch.setattr(variant_health, "MAX_RETEST_S", 0.02)
    async with (
        serving(**BOTH, **ON) as server,
        connected(server) as channel,
        Caller(kind, server.addresses[0], retry=ONCE) as caller,
        watching(channel, NAME + V1) as of_v1,
    ):
        assert await of_v1() == Health.SERVING
        sick = Sick(engine_of(server, V1))
        await fail_often(caller)
        assert await of_v1() == Health.NOT_SERVING
        computed = sick.batches
        await until(lambda: sick.batches >= computed + 2)
        with pytest.raises(UnavailableError):
            await caller.classify(JPEG, variant=V1)
        assert f"variant {V1} failed its self-test and stays out of service" in caplog.text
        sick.cure()
        assert await of_v1() == Health.SERVING
        assert (await caller.classify(JPEG, variant=V1)).variant.name == V1
        assert f"variant {V1} is in service again" in caplog.text
        assert (await scrape(server)).one("resnet50_variant_healthy", variant=V1) == 1


async def test_reloaded_variant_serves_and_the_old_one_is_not_tested(tmp_path, monkeypatch):
    monkeypatch.setattr(variant_health, "RETEST_S", 0.02)
    describe(tmp_path / "variants" / "v")
    options = {"variants": [V2], **DECODING}
    async with administrator(tmp_path / "variants", **options) as admin:
        await admin.load("v")
        sick = Sick(engine_of(admin.server, "v"))
        for _ in range(MIN_NON_FINITE):
            with refused("INTERNAL", "internal error"):
                await admin.classify("v")
        request = variant_pb2.LoadVariantRequest(name="v", replace=True)
        await admin.variants.LoadVariant(request, metadata=admin.token())
        assert (await admin.classify("v")).variant.name == "v"
        await until(lambda: len(queues_of(admin.server)) == 2)
        await until(lambda: len(admin.server.parts.self_tests) == 0)
        assert (await admin.states())["v"] == variant_pb2.VARIANT_STATE_READY
        assert sick.batches >= MIN_NON_FINITE


async def test_health_name_of_a_variant_comes_and_goes_with_it(tmp_path):
    describe(tmp_path / "variants" / "v")
    async with (
        administrator(tmp_path / "variants") as admin,
        connected(admin.server) as channel,
        watching(channel, NAME + "v") as of_v,
    ):
        assert await of_v() == Health.SERVICE_UNKNOWN
        await admin.load("v")
        while (status := await of_v()) != Health.SERVING:
            assert status == Health.NOT_SERVING  # while it is loaded
        await admin.unload("v")
        assert await of_v() == Health.SERVICE_UNKNOWN
        request = health_pb2.HealthCheckRequest(service=NAME + "v")
        with refused("NOT_FOUND", "service: unknown name"):
            await health_pb2_grpc.HealthStub(channel).Check(request)


# Streams and uploads


@pytest.mark.parametrize("kind", KINDS)
async def test_stream_on_an_unhealthy_variant_moves_to_another_server(kind):
    async with serving(**BOTH) as one, serving(**BOTH) as other:
        sick = Sick(engine_of(one, V1))
        go_on = asyncio.Event()
        loop = asyncio.get_running_loop()

        def images():
            yield from [JPEG] * MIN_NON_FINITE
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(60)
            yield from [JPEG] * 5

        async def aimages():
            for _ in range(MIN_NON_FINITE):
                yield JPEG
            await go_on.wait()
            for _ in range(5):
                yield JPEG

        async with Caller(kind, [one.addresses[0], other.addresses[0]]) as caller:
            # Until the first server answers the stream.
            source = images() if kind is KINDS[0] else aimages()
            answers = []
            async for answer in items(caller, "classify_stream", source, variant=V1):
                answers.append(answer)
                if len(answers) == MIN_NON_FINITE:
                    go_on.set()
        assert [one.frame_id for one in answers] == list(range(MIN_NON_FINITE + 5))
        failed = [answer.frame_id for answer in answers if answer.error is not None]
        # The stream has begun at either of the two.
        assert failed == (list(range(MIN_NON_FINITE)) if sick.batches else [])


@pytest.mark.parametrize("cache_bytes", [0, 2**24])
async def test_upload_to_a_variant_that_turns_unhealthy_is_refused(cache_bytes):
    Part = inference_pb2.ClassifyUploadRequest
    options = inference_pb2.ClassifyOptions(variant=V1)
    async with (
        serving(**BOTH, response_cache_bytes=cache_bytes) as server,
        connected(server) as channel,
        Caller(KINDS[1], server.addresses[0], retry=ONCE) as caller,
    ):
        await caller.classify(PNG, variant=V1)  # which the cache stores
        upload = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyUpload()
        begin = inference_pb2.ClassifyUploadOptions(options=options)
        await upload.write(Part(options=begin))
        await upload.write(Part(chunk=PNG[:100]))
        (entry,) = [one for one in server.parts.variants.loaded if one.spec.name == V1]
        await until(lambda: entry.uploads)
        sick = Sick(engine_of(server, V1))
        await fail_often(caller)
        computed = sick.batches
        await upload.write(Part(chunk=PNG[100:]))
        await upload.done_writing()
        with refused("UNAVAILABLE", f"variant {V1} is out of service"):
            await upload
        assert sick.batches == computed


# Batches that fail


@pytest.mark.parametrize("kind", KINDS)
async def test_variant_of_failing_batches_does_not_lose_the_device(kind):
    async with (
        serving(**BOTH, **ON) as server,
        Caller(kind, server.addresses[0], retry=ONCE) as caller,
    ):
        Sick(engine_of(server, V1), RuntimeError("as the test wants it"))
        await fail_often(caller, times=MAX_CONSECUTIVE_FAILURES)
        (queue,) = [one for one in queues_of(server) if one.name == V1]
        await until(lambda: queue.health.problem)
        with pytest.raises(UnavailableError, match="its engine fails on every batch on cpu"):
            await caller.classify(JPEG, variant=V1)
        for _ in range(2 * MAX_CONSECUTIVE_FAILURES):
            assert (await caller.classify(JPEG)).variant.name == V2
        assert not server.failed.is_set()
        assert await caller.health() == "SERVING"


async def test_device_on_which_all_variants_fail_is_lost():
    async with (
        serving(**BOTH) as server,
        Caller(KINDS[1], server.addresses[0], retry=ONCE) as caller,
    ):
        for name in (V1, V2):
            Sick(engine_of(server, name), RuntimeError("as the test wants it"))
        await fail_often(caller, times=MAX_CONSECUTIVE_FAILURES)
        await server.failed.wait()
        assert server.fault.status == 70
        assert await caller.health() == "NOT_SERVING"


# Traffic splits


async def test_failing_canary_ends_its_split_and_loses_no_call(tmp_path, caplog):
    (tmp_path / "variants").mkdir()
    split = Split(V2, V1, canary_percent=50.0)
    keys = [f"user-{number}" for number in range(40)]
    canary = next(key for key in keys if split.is_canary(key))
    async with administrator(tmp_path / "variants", **BOTH, **ON) as admin:

        async def set_split(**shares) -> variant_pb2.TrafficReport:
            message = variant_pb2.TrafficSplit(variant=V2, candidate=V1, **shares)
            request = variant_pb2.SetTrafficSplitRequest(split=message)
            return await admin.variants.SetTrafficSplit(request, metadata=admin.token())

        async def classify(key: str) -> str:
            request = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
            metadata = (*admin.token(), ("x-caller-key", key))
            return (await admin.inference.Classify(request, metadata=metadata)).variant.name

        async def report() -> variant_pb2.TrafficReport:
            request = variant_pb2.ListTrafficSplitsRequest()
            listed = await admin.variants.ListTrafficSplits(request, metadata=admin.token())
            (one,) = listed.reports
            return one

        await set_split(canary_percent=50.0, shadow_percent=100.0)
        assert (await report()).ended == ""
        sick = Sick(engine_of(admin.server, V1))
        for _ in range(MIN_NON_FINITE):
            with refused("INTERNAL", "internal error"):
                await classify(canary)
        for key in keys:
            assert await classify(key) == V2
        ended = await report()
        assert ended.ended == f"candidate {V1} is out of service: {PROBLEM}"
        assert (ended.candidate_answers.answered, ended.candidate_answers.failed) == (
            0,
            MIN_NON_FINITE,
        )
        assert f"the traffic split of {V2} has ended" in caplog.text
        labels = {"variant": V2, "candidate": V1}
        assert (await scrape(admin.server)).one("resnet50_split_ended", **labels) == 1
        assert (await get(admin.server, "/readyz"))[0] == 200

        with refused("FAILED_PRECONDITION", f"split.candidate: {V1} is out of service: {PROBLEM}"):
            await set_split(canary_percent=50.0)
        # Once it is well, a split that is set anew begins anew, also if it is the same.
        sick.cure()
        (entry,) = [one for one in admin.server.parts.variants.loaded if one.spec.name == V1]
        entry.queue.health.recover()
        assert await classify(canary) == V2
        again = (await set_split(canary_percent=50.0, shadow_percent=100.0)).report
        assert (again.ended, again.candidate_answers.failed) == ("", 0)
        assert await classify(canary) == V1


async def test_ended_split_does_not_block_unloading(tmp_path):
    describe(tmp_path / "variants" / "v")
    options = {"variants": [V2], **DECODING}
    async with administrator(tmp_path / "variants", **options) as admin:
        await admin.load("v")
        message = variant_pb2.TrafficSplit(variant="v", candidate=V2, shadow_percent=1.0)
        request = variant_pb2.SetTrafficSplitRequest(split=message)
        await admin.variants.SetTrafficSplit(request, metadata=admin.token())
        with refused("FAILED_PRECONDITION", "used by the traffic split"):
            await admin.unload("v")
        Sick(engine_of(admin.server, V2))
        for _ in range(MIN_NON_FINITE):
            with refused("INTERNAL", "internal error"):
                await admin.classify(V2)
        await admin.unload("v")
        request = variant_pb2.ListTrafficSplitsRequest()
        listed = await admin.variants.ListTrafficSplits(request, metadata=admin.token())
        assert not listed.reports


async def test_sick_variant_beside_a_healthy_one_in_a_process(tmp_path):
    """`make sick-variant`, as short as it can be."""
    for outcome in await sick_variant.trial(tmp_path, seconds=0.5):
        assert outcome.faults == []
        assert outcome.healthy[sick_variant.HEALTHY] > 10
        assert MIN_NON_FINITE <= outcome.sick["INTERNAL"] < 2 * MIN_NON_FINITE
        assert outcome.of_sick == ["SERVING", "NOT_SERVING"]
        answered = outcome.sick[sick_variant.HEALTHY]
        assert answered > 0 if outcome.ended else answered == 0
        assert set(outcome.sick) <= {"INTERNAL", "UNAVAILABLE", sick_variant.HEALTHY}
    assert outcome.ended.startswith("candidate sick is out of service")
