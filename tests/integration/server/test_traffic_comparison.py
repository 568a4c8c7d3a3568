"""Outcomes of traffic splits: variant and candidate compared, without delaying a request."""

from __future__ import annotations

import asyncio
import contextlib
import io

import grpc
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import functional as transforms

from resnet50.v1 import (
    variant_pb2,
)
from resnet50_server.errors import ShuttingDown
from resnet50_server.rollout.shadow import MAX_WAITING
from tests.support.pictures import PHOTOS, encode, photo_like
from tests.support.scrape import ON, scrape_once
from tests.support.serving import DECODING, until, until_result
from tests.support.traffic import (
    PNG,
    V1,
    V2,
    Operator,
    engine_of,
    held_back,
    metadata,
    operated,
    refused,
)
from tests.support.weights import TRANSFORM, calm, custom_variant, run, torchvision_model


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
        await until(lambda: active.shadows.idle)
        report = await operator.report()
        taken = report.comparison.images + report.skipped
        assert 150 - 45 < taken < 150 + 45  # 5 standard deviations
        assert report.variant_answers.answered == 300


async def test_candidate_that_fails_fails_nobody(tmp_path):
    async with operated(tmp_path) as operator:
        await operator.split(V2, V1, shadow_percent=100.0)

        def fail(*_):
            raise RuntimeError("bad weights")

        engine_of(operator, V1).run = fail
        for number in range(20):
            assert (await operator.classify()).variant.name == V2
            report = await until_result(
                operator.report, lambda report, number=number: report.failed > number
            )
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
            await until(lambda: not active.shadows.waiting)  # it is computed
            for _ in range(MAX_WAITING + 30):
                assert (await operator.classify()).variant.name == V2
            report = await operator.report()
            assert report.variant_answers.answered == MAX_WAITING + 31
            assert (report.skipped, active.shadows.waiting) == (30, MAX_WAITING)
            assert not report.HasField("comparison")
        finally:
            opened.set()
        assert (await operator.compared(MAX_WAITING + 1)).skipped == 30


async def put_elsewhere(operator: Operator, name: str) -> None:
    """Let a variant compute on a device of its own."""
    loaded = operator.server.parts.variants.find(name)
    scheduler, _ = operator.server.parts.devices.get("other")
    await loaded.scheduler.remove(loaded.queue, ShuttingDown(), 0.0)
    loaded.scheduler, loaded.queue = (
        scheduler,
        scheduler.add(name, loaded.built.engine, [(1, 0.001)]),
    )


async def test_drain_waits_for_nothing_that_the_candidate_computes(tmp_path):
    async with operated(tmp_path, drain_timeout_s=600.0) as operator:
        await operator.split(V2, V1, shadow_percent=100.0)
        (active,) = operator.server.parts.traffic.splits
        opened = held_back(engine_of(operator, V1))
        try:
            await operator.classify()
            await until(lambda: operator.server.snapshot().batches["cpu"])
            await asyncio.wait_for(operator.server.stop(), 60)
            assert active.shadows.idle
            assert not active.shadows.waiting
        finally:
            opened.set()


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
