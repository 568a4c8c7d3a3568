"""Traffic splits on real servers: sides, comparison, and no request waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import functional as transforms

from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.errors import ShuttingDown
from resnet50_server.rollout.shadow import MAX_WAITING
from resnet50_server.rollout.split import Split
from resnet50_server.runtime.worker_threads import WorkerThreads
from tests.support.administering import ADMIN, APP, administered, describe
from tests.support.pictures import PHOTOS, encode, photo_like, picture
from tests.support.scrape import ON, scrape_once
from tests.support.serving import DECODING, connected, queues_of, until
from tests.support.weights import TRANSFORM, calm, custom_variant, run, torchvision_model

PNG = encode(picture())
V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
BOTH = [V2, V1]  # V2, which is DEFAULT too, is the server's default


class Operator:
    """Calls a server as somebody who may do everything, and as its callers."""

    def __init__(self, server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.variants = variant_pb2_grpc.VariantServiceStub(channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)

    async def split(self, variant: str, candidate: str, token: str = ADMIN, **shares):
        message = variant_pb2.TrafficSplit(variant=variant, candidate=candidate, **shares)
        request = variant_pb2.SetTrafficSplitRequest(split=message)
        answer = await self.variants.SetTrafficSplit(request, metadata=metadata(token=token))
        return answer.report

    async def delete(self, variant: str, token: str = ADMIN):
        request = variant_pb2.DeleteTrafficSplitRequest(variant=variant)
        answer = await self.variants.DeleteTrafficSplit(request, metadata=metadata(token=token))
        return answer.report

    async def reports(self, token: str = ADMIN) -> list[variant_pb2.TrafficReport]:
        request = variant_pb2.ListTrafficSplitsRequest()
        answer = await self.variants.ListTrafficSplits(request, metadata=metadata(token=token))
        return list(answer.reports)

    async def report(self) -> variant_pb2.TrafficReport:
        (report,) = await self.reports()
        return report

    async def compared(self, images: int) -> variant_pb2.TrafficReport:
        """Return the report once so many images have been compared."""
        while (report := await self.report()).comparison.images < images:
            await asyncio.sleep(0.01)
        return report

    def classify(self, image: bytes = PNG, key: str | None = None, **options):
        request = inference_pb2.ClassifyRequest(
            options=inference_pb2.ClassifyOptions(**options), image=image_pb2.Image(encoded=image)
        )
        return self.inference.Classify(request, metadata=metadata(key))

    def embed(self, image: bytes = PNG, key: str | None = None, **options):
        request = inference_pb2.EmbedRequest(
            options=inference_pb2.EmbedOptions(**options), image=image_pb2.Image(encoded=image)
        )
        return self.inference.Embed(request, metadata=metadata(key))

    def upload(self, image: bytes = PNG, key: str | None = None, **options):
        Part = inference_pb2.ClassifyUploadRequest
        begin = inference_pb2.ClassifyUploadOptions(
            options=inference_pb2.ClassifyOptions(**options)
        )
        parts = [Part(options=begin), Part(chunk=image[:100]), Part(chunk=image[100:])]
        return self.inference.ClassifyUpload(iter(parts), metadata=metadata(key))

    async def stream(self, *images: bytes, key: str | None = None, **options) -> list:
        call = self.inference.ClassifyStream(metadata=metadata(key))
        config = inference_pb2.ClassifyStreamConfig(
            options=inference_pb2.ClassifyOptions(**options)
        )
        await call.write(inference_pb2.ClassifyStreamRequest(config=config))
        for number, image in enumerate(images):
            await call.write(frame(number, image))
        await call.done_writing()
        return [reply async for reply in call]


def frame(number: int, image: bytes) -> inference_pb2.ClassifyStreamRequest:
    one = inference_pb2.Frame(frame_id=number, image=image_pb2.Image(encoded=image))
    return inference_pb2.ClassifyStreamRequest(frame=one)


def metadata(key: str | None = None, token: str = ADMIN) -> tuple[tuple[str, str], ...]:
    known = () if key is None else (("x-caller-key", key),)
    return (("authorization", f"Bearer {token}"), *known)


@contextlib.asynccontextmanager
async def operated(tmp_path: Path, **settings) -> AsyncIterator[Operator]:
    """Run a server with two variants whose answers never differ, and whose callers have tokens."""
    folder = tmp_path / "variants"
    folder.mkdir(exist_ok=True)
    async with (
        administered(folder, **{"variants": BOTH} | settings) as server,
        connected(server) as channel,
    ):
        yield Operator(server, channel)


@contextlib.contextmanager
def refused(code: str, *texts: str):
    with pytest.raises(grpc.RpcError) as failed:
        yield
    assert failed.value.code().name == code, failed.value
    for text in texts:
        assert text in failed.value.details()


def engine_of(operator: Operator, name: str):
    (engine,) = [queue.engine for queue in queues_of(operator.server) if queue.name == name]
    return engine


def held_back(engine) -> threading.Event:
    """Make an engine wait for an event before each batch."""
    run, opened = engine.run, threading.Event()

    def wait(*arguments):
        opened.wait(60)
        return run(*arguments)

    engine.run = wait
    return opened


# Routing


async def test_canaries_are_answered_by_the_candidate_in_every_method(tmp_path):
    split = Split(V2, V1, canary_percent=30.0)
    keys = [f"user-{number}" for number in range(60)]
    expected = {key: V1 if split.is_canary(key) else V2 for key in keys}
    assert set(expected.values()) == {V1, V2}
    async with operated(tmp_path) as operator:
        report = await operator.split(V2, V1, canary_percent=30.0, canary_embeddings=True)
        assert (report.split.variant, report.split.candidate) == (V2, V1)
        for _ in range(2):
            answers = await asyncio.gather(*(operator.classify(key=key) for key in keys))
            assert {
                key: answer.variant.name for key, answer in zip(keys, answers, strict=True)
            } == expected
        canary = next(key for key in keys if expected[key] == V1)
        other = next(key for key in keys if expected[key] == V2)
        for key in (canary, other):
            embedded = await operator.embed(key=key)
            assert embedded.variant.name == expected[key]
            assert embedded.embedding.space.startswith(f"{expected[key]}@")
            assert (await operator.upload(key=key)).variant.name == expected[key]
            frames = await operator.stream(PNG, PNG, key=key)
            assert [reply.variant.name for reply in frames] == [expected[key]] * 2
        report = await operator.report()
    canaries = sum(name == V1 for name in expected.values())
    assert report.candidate_answers.answered == 2 * canaries + 4
    assert report.variant_answers.answered == 2 * (len(keys) - canaries) + 4
    assert report.variant_answers.failed == report.candidate_answers.failed == 0
    for share in (report.variant_answers, report.candidate_answers):
        assert 0.0 < share.p50_ms <= share.p99_ms
    assert not report.HasField("comparison")


async def test_split_applies_to_every_name_of_its_variant_only(tmp_path):
    async with operated(tmp_path) as operator:
        await operator.split("DEFAULT", V1, canary_percent=100.0)
        for name in ("", V2, "DEFAULT", f"ResNet50_Weights.{V2}"):
            assert (await operator.classify(variant=name)).variant.name == V1
        report = await operator.report()
        assert report.split.variant == V2
        assert report.candidate_answers.answered == 4
        assert (await operator.classify(variant=V1)).variant.name == V1
        assert (await operator.report()).candidate_answers.answered == 4


async def test_caller_without_a_key_is_who_its_token_says(tmp_path):
    operators = "token:operator"
    percent = next(
        step / 100 for step in range(10_001) if Split(V2, V1, step / 100, 1.0).is_canary(operators)
    )
    async with operated(tmp_path) as operator:
        await operator.split(V2, V1, canary_percent=percent)
        assert (await operator.classify()).variant.name == V1
        await operator.split(V2, V1, canary_percent=percent - 0.01, shadow_percent=1.0)
        assert (await operator.classify()).variant.name == V2
        assert (await operator.classify(key=operators)).variant.name == V2


@pytest.mark.parametrize("key", ["", "k" * 129])
async def test_invalid_routing_key_is_refused_with_or_without_split(tmp_path, key):
    async with operated(tmp_path) as operator:
        for _ in range(2):
            with refused("INVALID_ARGUMENT", "x-caller-key", "1 to 128 printable ASCII"):
                await operator.classify(key=key)
            await operator.split(V2, V1, canary_percent=50.0)
        await operator.classify(key="k" * 128)
        await operator.classify(key="a key, with ~ all that prints!")


@pytest.mark.parametrize(
    ("categories", "difference"),
    [
        (("a",), "few has other categories than two: 1 instead of 2"),
        (("a", "c"), "few has other categories than two: number 1 is 'c' instead of 'b'"),
        (("b", "a"), "few has other categories than two: number 0 is 'b' instead of 'a'"),
    ],
)
async def test_canary_has_the_categories_of_the_variant(tmp_path, categories, difference):
    describe(two := tmp_path / "two", ("a", "b"))
    describe(few := tmp_path / "few", categories)
    async with operated(tmp_path, variants=[f"two={two}", f"few={few}"]) as operator:
        with refused("FAILED_PRECONDITION", f"split.canary_percent: {difference}", "shadow_perc"):
            await operator.split("two", "few", canary_percent=1.0, shadow_percent=1.0)
        assert await operator.reports() == []
        await operator.split("two", "few", shadow_percent=1.0)


async def test_canary_ends_if_categories_change_in_a_replacement(tmp_path):
    folder = tmp_path / "variants"
    for name in ("one", "two"):
        describe(folder / name, ("a", "b"))
    async with operated(tmp_path) as operator:

        async def load(name: str, *categories: str) -> None:
            describe(folder / name, categories)
            request = variant_pb2.LoadVariantRequest(name=name, replace=True)
            await operator.variants.LoadVariant(request, metadata=metadata())

        for name in ("one", "two"):
            await load(name, "a", "b")
        await operator.split("one", "two", canary_percent=100.0)
        await load("two", "a", "b")
        await load("one", "a", "b")
        assert (await operator.classify(variant="one")).variant.name == "two"
        assert (await operator.report()).ended == ""
        await load("two", "a", "c")
        assert (await operator.classify(variant="one")).variant.name == "one"
        ended = "two has other categories than one: number 1 is 'c' instead of 'b'"
        assert (await operator.report()).ended == ended
        # Neither is kept from being unloaded, and the report can be deleted.
        assert (await operator.delete("one")).ended == ended
        assert await operator.reports() == []


async def test_canary_leaves_embeddings_out_unless_asked(tmp_path):
    async with operated(tmp_path) as operator:
        for embeddings in (False, True):
            report = await operator.split(
                V2, V1, canary_percent=100.0, canary_embeddings=embeddings
            )
            assert report.split.canary_embeddings is embeddings
            assert (await operator.classify()).variant.name == V1
            expected = V1 if embeddings else V2
            both = await operator.classify(include_embedding=True)
            (streamed,) = await operator.stream(PNG, include_embedding=True)
            uploaded = await operator.upload(include_embedding=True)
            for reply in (await operator.embed(), both, streamed, uploaded):
                assert reply.variant.name == expected
            assert both.classification.embedding.space.startswith(f"{expected}@")


async def test_failures_are_counted_on_the_side_where_they_happen(tmp_path):
    async with operated(tmp_path, **DECODING) as operator:
        await operator.split(V2, V1, shadow_percent=100.0)
        with refused("INVALID_ARGUMENT", "image.encoded"):
            await operator.classify(b"no image")
        replies = await operator.stream(b"no image", PNG)
        assert [reply.WhichOneof("outcome") for reply in replies] == ["error", "classification"]
        report = await operator.compared(1)
        answers = report.variant_answers
        assert (answers.answered, answers.failed) == (1, 2)
        # Requests that the variant has not answered are not compared.
        assert (report.failed, report.skipped, report.comparison.images) == (0, 0, 1)

        opened = held_back(engine_of(operator, V2))
        try:
            waiting = operator.classify(image=PNG)
            await until(lambda: operator.server.snapshot().requests)
            waiting.cancel()
            while (await operator.report()).variant_answers.failed == 2:
                await asyncio.sleep(0.005)
        finally:
            opened.set()


# Outcomes


@pytest.fixture(scope="module")
def tuned() -> tuple[dict, dict, list[bytes]]:
    """Return weights, others that agree with them on some pictures, and the pictures."""
    base = calm(categories=10)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        head = base["fc.weight"] + 0.3 * base["fc.weight"].std() * torch.randn(10, 2048)
    shifted = {
        key: value * 2.0 if key.endswith("bn3.weight") else value for key, value in base.items()
    }
    other = shifted | {"fc.weight": head}
    pictures = [Image.open(path).convert("RGB") for path in PHOTOS]
    pictures += [photo_like(300, 240, seed) for seed in range(8)]
    return base, other, [encode(one) for one in pictures]


def plainly(state: dict, images: list[bytes], resize: int):
    """Return what torchvision's own model makes of images: first categories, embeddings."""
    batch = []
    for image in images:
        with Image.open(io.BytesIO(image)) as opened:
            resized = transforms.resize(opened.convert("RGB"), resize)
        pixels = transforms.to_tensor(transforms.center_crop(resized, 224))
        batch.append(transforms.normalize(pixels, TRANSFORM["mean"], TRANSFORM["std"]))
    probabilities, embeddings = run(torchvision_model(state), torch.stack(batch))
    return probabilities.argmax(dim=1), embeddings


async def test_comparison_matches_torch_and_resets_with_new_weights(tmp_path, tuned):
    base, other, images = tuned
    names = [f"kind {index}" for index in range(10)]
    folder = tmp_path / "variants"
    # The candidate numbers its categories the other way round, and has a transform of its own.
    backwards = other | {key: other[key].flip(0) for key in ("fc.weight", "fc.bias")}
    own = {"categories": names[::-1], "transform": TRANSFORM | {"resize": 256}}
    custom_variant(folder / "base", base)
    custom_variant(folder / "tuned", backwards, **own)
    first, vectors = plainly(base, images, 224)
    second, tuned_vectors = plainly(other, images, 256)
    agreement = (first == second).float().mean().item()
    cosines = functional.cosine_similarity(vectors, tuned_vectors)
    assert 0.2 < agreement < 0.9
    assert cosines.min() < cosines.mean() < 0.997

    variants = [f"base={folder / 'base'}", f"tuned={folder / 'tuned'}"]
    options = {"engine": "torch", "precision": "fp32", "max_batch_size": 2}
    async with operated(tmp_path, variants=variants, **options) as operator:
        begun = await operator.split("base", "tuned", shadow_percent=100.0)
        for number, image in enumerate(images):
            await operator.classify(image, top_k=1)
            report = await operator.compared(number + 1)
        comparison = report.comparison
        assert comparison.top_1_agreement == pytest.approx(agreement)
        assert comparison.embedding_cosine == pytest.approx(cosines.mean().item(), abs=1e-4)
        assert comparison.min_embedding_cosine == pytest.approx(cosines.min().item(), abs=1e-4)
        assert comparison.variant_compute_ms > 0.0
        assert comparison.candidate_compute_ms > 0.0
        assert (report.variant_answers.answered, report.failed, report.skipped) == (10, 0, 0)
        assert report.variant_digest == begun.variant_digest
        assert report.elapsed_s > 0.0

        # The same weights in the candidate's place: what was counted is of others.
        custom_variant(folder / "tuned", base)
        request = variant_pb2.LoadVariantRequest(name="tuned", replace=True)
        loaded = await operator.variants.LoadVariant(request, metadata=metadata())
        report = await operator.report()
        assert report.candidate_digest == loaded.variant.digest != begun.candidate_digest
        assert report.variant_answers.answered == 0
        assert not report.HasField("comparison")
        for number, image in enumerate(images[:4]):
            await operator.embed(image)
            report = await operator.compared(number + 1)
        assert report.comparison.top_1_agreement == 1.0
        assert report.comparison.min_embedding_cosine == pytest.approx(1.0, abs=1e-6)
        assert report.split.shadow_percent == 100.0


async def test_frames_and_uploads_are_compared_too(tmp_path):
    async with operated(tmp_path, **DECODING) as operator:
        await operator.split(V2, V1, shadow_percent=100.0)
        await operator.upload()
        await operator.compared(1)
        await operator.stream(PNG, PNG, PNG)
        report = await operator.compared(4)
        assert report.comparison.images + report.skipped == 4


async def test_caller_gets_what_it_asked_for_and_no_more(tmp_path):
    async with operated(tmp_path) as operator:
        before = await operator.classify(top_k=2), await operator.embed()
        await operator.split(V2, V1, shadow_percent=100.0)
        after = await operator.classify(top_k=2), await operator.embed()
        await operator.compared(2)
    for one, other in zip(before, after, strict=True):
        one.ClearField("timing"), other.ClearField("timing")
        assert one == other
    assert not after[0].classification.HasField("embedding")


async def test_share_of_images_is_compared_not_of_callers(tmp_path):
    async with operated(tmp_path) as operator:
        await operator.split(V2, V1, shadow_percent=50.0)
        for _ in range(300):
            await operator.classify(key="one")
        (active,) = operator.server.parts.traffic.splits
        await until(lambda: active.shadows._working is None)
        report = await operator.report()
        taken = report.comparison.images + report.skipped
        assert 150 - 45 < taken < 150 + 45  # 5 standard deviations
        assert report.variant_answers.answered == 300


# No request waits


async def test_candidate_that_fails_fails_nobody(tmp_path):
    async with operated(tmp_path) as operator:
        await operator.split(V2, V1, shadow_percent=100.0)

        def fail(*_):
            raise RuntimeError("bad weights")

        engine_of(operator, V1).run = fail
        for number in range(20):
            assert (await operator.classify()).variant.name == V2
            while (report := await operator.report()).failed <= number:
                await asyncio.sleep(0.005)
        assert (report.failed, report.skipped) == (20, 0)
        assert not report.HasField("comparison")
        assert not operator.server.failed.is_set()


async def test_hung_candidate_takes_one_image_and_skips_the_rest(tmp_path):
    # On a device of its own: on the variant's, a batch that hangs hangs the device, whatever it is
    # for. With room for one request, none of what is computed for no client may take it.
    limits = {"max_requests": 1, "max_requests_per_caller": 1, "max_request_bytes": len(PNG)}
    async with operated(tmp_path, **limits) as operator:
        await put_elsewhere(operator, V1)
        await operator.split(V2, V1, shadow_percent=100.0)
        (active,) = operator.server.parts.traffic.splits
        opened = held_back(engine_of(operator, V1))
        try:
            await operator.classify()
            await until(lambda: not active.shadows._waiting)  # it is computed
            for _ in range(MAX_WAITING + 30):
                assert (await operator.classify()).variant.name == V2
            report = await operator.report()
            assert report.variant_answers.answered == MAX_WAITING + 31
            assert (report.skipped, len(active.shadows._waiting)) == (30, MAX_WAITING)
            assert not report.HasField("comparison")
        finally:
            opened.set()
        assert (await operator.compared(MAX_WAITING + 1)).skipped == 30


async def put_elsewhere(operator: Operator, name: str) -> None:
    """Let a variant compute on a device of its own."""
    variants = operator.server.parts.inference._variants
    loaded = variants.find(name)
    threads = WorkerThreads(1, "engine-other", lambda: None)
    scheduler = Scheduler(loaded.scheduler.policy, threads)
    await loaded.scheduler.remove(loaded.queue, ShuttingDown(), 0.0)
    loaded.scheduler, loaded.queue = (
        scheduler,
        scheduler.add(name, loaded.built.engine, [(1, 0.001)]),
    )
    operator.server.parts.devices._schedulers["other"] = scheduler
    operator.server.parts.devices._threads["other"] = threads


async def test_drain_waits_for_nothing_that_the_candidate_computes(tmp_path):
    async with operated(tmp_path, drain_timeout_s=600.0) as operator:
        await operator.split(V2, V1, shadow_percent=100.0)
        (active,) = operator.server.parts.traffic.splits
        opened = held_back(engine_of(operator, V1))
        try:
            await operator.classify()
            await until(lambda: operator.server.snapshot().batches["cpu"])
            await asyncio.wait_for(operator.server.stop(), 60)
            assert active.shadows._working is None
            assert not active.shadows._waiting
        finally:
            opened.set()


# How it is set


async def test_changed_shares_reset_the_comparison(tmp_path):
    async with operated(tmp_path) as operator:
        await operator.split(V2, V1, shadow_percent=100.0)
        await operator.classify()
        await operator.compared(1)
        same = await operator.split("DEFAULT", V1, shadow_percent=100.0)
        assert same.comparison.images == same.variant_answers.answered == 1
        changed = await operator.split(V2, V1, shadow_percent=99.0)
        assert changed.variant_answers.answered == 0
        assert not changed.HasField("comparison")
        await operator.split(V1, V2, canary_percent=0.01)
        assert [one.split.variant for one in await operator.reports()] == [V2, V1]
        last = await operator.delete("DEFAULT")
        assert last.split.shadow_percent == 99.0
        assert [one.split.variant for one in await operator.reports()] == [V1]
        with refused("NOT_FOUND", f"variant: {V2} has no traffic split", V1):
            await operator.delete(V2)


async def test_stream_sees_a_later_split_but_keeps_its_weights(tmp_path):
    async with operated(tmp_path) as operator:
        call = operator.inference.ClassifyStream(metadata=metadata())
        config = inference_pb2.ClassifyStreamConfig()
        await call.write(inference_pb2.ClassifyStreamRequest(config=config))
        await call.write(frame(0, PNG))
        assert (await call.read()).variant.name == V2
        await operator.split(V2, V1, canary_percent=100.0, shadow_percent=100.0)
        await call.write(frame(1, PNG))
        assert (await call.read()).variant.name == V2
        report = await operator.compared(1)
        assert (report.variant_answers.answered, report.candidate_answers.answered) == (1, 0)
        await operator.delete(V2)
        await call.write(frame(2, PNG))
        assert (await call.read()).variant.name == V2
        await call.done_writing()


async def test_variant_that_a_split_names_is_not_unloaded(tmp_path):
    async with operated(tmp_path, variants=[V2, V1, "untrained=random:0"]) as operator:
        await operator.split(V1, "untrained", canary_percent=1.0)
        for name in (V1, "untrained"):
            request = variant_pb2.UnloadVariantRequest(name=name)
            with refused("FAILED_PRECONDITION", f"traffic split of {V1}", "DeleteTrafficSplit"):
                await operator.variants.UnloadVariant(request, metadata=metadata())
        await operator.delete(V1)
        await operator.variants.UnloadVariant(request, metadata=metadata())
        with refused("NOT_FOUND", "split.candidate", "'untrained'"):
            await operator.split(V1, "untrained", canary_percent=1.0)


async def test_split_needs_two_variants_shares_and_a_token_that_may(tmp_path):
    async with operated(tmp_path) as operator:
        for code, text, arguments in (
            ("INVALID_ARGUMENT", "split.variant: is empty", {"variant": ""}),
            ("INVALID_ARGUMENT", "split.candidate: is empty", {"candidate": ""}),
            ("INVALID_ARGUMENT", "split.candidate: is", {"candidate": "DEFAULT"}),
            ("INVALID_ARGUMENT", "split.canary_percent: is 101", {"canary_percent": 101.0}),
            ("INVALID_ARGUMENT", "steps of 0.01", {"canary_percent": 0.015}),
            ("INVALID_ARGUMENT", "nothing would be compared", {}),
            ("NOT_FOUND", "split.variant: no variant 'V3'", {"variant": "V3"}),
            ("PERMISSION_DENIED", "'admin'", {"token": APP, "canary_percent": 1.0}),
        ):
            with refused(code, text):
                await operator.split(**{"variant": V2, "candidate": V1} | arguments)
        for call in (operator.reports(token=APP), operator.delete(V2, token=APP)):
            with refused("PERMISSION_DENIED", "'admin'"):
                await call
        with refused("INVALID_ARGUMENT", "variant: is empty"):
            await operator.delete("")
        assert await operator.reports() == []
    async with operated(tmp_path, variants_dir=None) as operator:
        with refused("UNIMPLEMENTED", "SetTrafficSplit", "--variants-dir"):
            await operator.split(V2, V1, canary_percent=1.0)
        with refused("UNIMPLEMENTED", "DeleteTrafficSplit", "--variants-dir"):
            await operator.delete(V2)
        assert await operator.reports() == []


async def test_split_metrics_match_the_report_and_end_with_it(tmp_path):
    async with operated(tmp_path, **ON) as operator:
        await operator.split(V2, V1, canary_percent=30.0, shadow_percent=100.0)
        for number in range(20):
            await operator.classify(key=f"user-{number}")
            with contextlib.suppress(grpc.RpcError):
                await operator.classify(key=f"user-{number}", top_k=5000)
        seen = await scrape_once(
            operator.server, lambda found: found.of("resnet50_split_agreed_total", "variant")
        )
        report = await operator.report()
        variant, candidate = report.variant_answers, report.candidate_answers
        assert variant.failed == variant.answered > 0 < candidate.answered == candidate.failed
        assert seen.of("resnet50_split_answers_total", "side", "outcome") == {
            ("variant", "answered"): variant.answered,
            ("variant", "failed"): variant.failed,
            ("candidate", "answered"): candidate.answered,
            ("candidate", "failed"): candidate.failed,
        }
        pair = {"variant": V2, "candidate": V1}
        compared = seen.one("resnet50_split_shadows_total", outcome="compared", **pair)
        skipped = seen.one("resnet50_split_shadows_total", outcome="skipped", **pair)
        assert compared + skipped <= variant.answered
        assert seen.one("resnet50_split_agreed_total", **pair) == compared
        assert seen.one("resnet50_split_cosines_total", **pair) == pytest.approx(compared)
        # The candidate's share is no client's image.
        assert seen.of("resnet50_images_total", "variant", "outcome") == {
            (V2, "answered"): variant.answered,
            (V2, "refused"): variant.failed,
            (V1, "answered"): candidate.answered,
            (V1, "refused"): candidate.failed,
        }
        await operator.delete(V2)
        gone = await scrape_once(operator.server, lambda _: True)
        assert not any(name.startswith("resnet50_split_") for name, _ in gone)
