"""Traffic splits on real servers: how they are set, and which variant answers."""

from __future__ import annotations

import asyncio

import pytest

from resnet50.v1 import (
    inference_pb2,
    variant_pb2,
)
from resnet50_server.rollout.split import Split
from tests.support.administering import APP, describe
from tests.support.oip import files_request, rpc
from tests.support.serving import DECODING, until, until_result
from tests.support.traffic import (
    PNG,
    V1,
    V2,
    engine_of,
    frame,
    held_back,
    metadata,
    operated,
    refused,
)

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
            await until_result(operator.report, lambda report: report.variant_answers.failed != 2)
        finally:
            opened.set()


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


@pytest.mark.parametrize("files", [(b"no image",), (PNG, b"no image")], ids=["one", "two"])
@pytest.mark.parametrize("streamed", [False, True], ids=["call", "stream"])
async def test_failures_of_the_open_inference_protocol_are_counted(tmp_path, files, streamed):
    async with operated(tmp_path, oip=True, **DECODING) as operator:
        await operator.split(V2, V1, shadow_percent=100.0)
        request = files_request(*files, model_name=V2)
        if streamed:
            call = rpc(operator.channel, "ModelStreamInfer")
            (answer,) = [one async for one in call(iter([request]), metadata=metadata())]
            assert answer.error_message
        else:
            with refused("INVALID_ARGUMENT"):
                await rpc(operator.channel, "ModelInfer")(request, metadata=metadata())
        report = await operator.report()
        assert (report.variant_answers.failed, report.candidate_answers.failed) == (1, 0)
