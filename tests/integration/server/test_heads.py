"""Variants with a sigmoid head and without a head, through the contract and both clients."""

from __future__ import annotations

import math

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from resnet50.v1 import inference_pb2, inference_pb2_grpc, variant_pb2, variant_pb2_grpc
from resnet50_client import NoClassificationHeadError
from tests.support.administering import IMAGE, administrator, describe, refused
from tests.support.clients import KINDS, Caller, items
from tests.support.pictures import encode, photo_like
from tests.support.serving import connected, serving

PNG = encode(photo_like(32, 32))
LABELS = ("cat", "dog", "sofa")
# Of the null engine, by sigmoid.
PROBABILITIES = [1 / (1 + math.exp(index)) for index in range(3)]


@pytest.fixture
def variants(tmp_path) -> list[str]:
    describe(tmp_path / "tags", LABELS, activation="sigmoid", thresholds=[0.6, 0.2, 0.1])
    describe(tmp_path / "vectors", ())
    return [f"tags={tmp_path / 'tags'}", f"vectors={tmp_path / 'vectors'}"]


async def classify(channel, **options):
    request = inference_pb2.ClassifyRequest(
        options=inference_pb2.ClassifyOptions(**options), image=IMAGE
    )
    reply = await inference_pb2_grpc.InferenceServiceStub(channel).Classify(request)
    return [(one.label, pytest.approx(one.probability)) for one in reply.classification.categories]


async def test_thresholds_choose_the_labels_unless_a_minimum_is_given(variants):
    async with serving(variants=variants) as server, connected(server) as channel:
        all_three = list(zip(LABELS, PROBABILITIES, strict=True))
        assert await classify(channel) == all_three[1:]
        assert await classify(channel, top_k=2) == all_three[1:2]
        assert await classify(channel, min_probability=0.0) == all_three
        assert await classify(channel, min_probability=0.3) == all_three[:1]


async def test_contract_shows_activation_and_thresholds(variants):
    async with serving(variants=variants) as server, connected(server) as channel:
        stub = variant_pb2_grpc.VariantServiceStub(channel)
        listed = (await stub.ListVariants(variant_pb2.ListVariantsRequest())).variants
        assert {one.name: (one.activation, one.category_count) for one in listed} == {
            "tags": (variant_pb2.ACTIVATION_SIGMOID, 3),
            "vectors": (variant_pb2.ACTIVATION_NONE, 0),
        }
        request = variant_pb2.GetVariantRequest(name="tags")
        shown = (await stub.GetVariant(request)).variant
        assert list(shown.thresholds) == pytest.approx([0.6, 0.2, 0.1])


async def test_classification_without_a_head_is_refused_with_the_way_out(variants):
    async with serving(variants=variants) as server, connected(server) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            await classify(channel, variant="vectors")
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "vectors has no classification head: ask for its embedding" in failed.value.details()
        metadata = dict(failed.value.trailing_metadata())
        status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
        reason = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(reason)
        assert reason.reason == "NO_CLASSIFICATION_HEAD"


async def test_batch_is_embedded_without_a_head(variants):
    options = inference_pb2.EmbedOptions(variant="vectors")
    request = inference_pb2.EmbedBatchRequest(options=options, images=[IMAGE, IMAGE])
    async with serving(variants=variants) as server, connected(server) as channel:
        reply = await inference_pb2_grpc.InferenceServiceStub(channel).EmbedBatch(request)
        assert [one.embedding.dimension for one in reply.results] == [2048, 2048]


@pytest.mark.parametrize("kind", KINDS)
async def test_clients_embed_and_name_the_missing_head(variants, kind):
    async with serving(variants=variants) as server, Caller(kind, server.addresses[0]) as client:
        assert len((await client.embed(PNG, variant="vectors")).vector) == 2048
        with pytest.raises(NoClassificationHeadError, match="no classification head"):
            await client.classify(PNG, variant="vectors")
        with pytest.raises(NoClassificationHeadError, match="no classification head"):
            async for _ in items(client, "classify_many", [PNG], variant="vectors"):
                pass
        shown = await client.get_variant("tags")
        assert (shown.activation, shown.thresholds) == ("sigmoid", pytest.approx((0.6, 0.2, 0.1)))
        (vectors,) = [one for one in await client.list_variants() if one.name == "vectors"]
        assert (vectors.activation, vectors.category_count) == ("none", 0)


async def test_traffic_split_needs_categories(tmp_path):
    folder = tmp_path / "variants"
    describe(folder / "vectors", ())
    async with administrator(folder) as admin:
        await admin.load("vectors")
        split = variant_pb2.TrafficSplit(
            variant="IMAGENET1K_V2", candidate="vectors", shadow_percent=100
        )
        request = variant_pb2.SetTrafficSplitRequest(split=split)
        with refused("FAILED_PRECONDITION", "vectors has no classification head"):
            await admin.variants.SetTrafficSplit(request, metadata=admin.token())
