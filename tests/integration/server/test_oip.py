"""The Open Inference Protocol: inference, metadata, streams, administration."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from torchvision.models import ResNet50_Weights

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_server.errors import DeadlineUnreachable
from resnet50_server.inference.decode_pool import NO_REQUEST
from tests.support.administering import ADMIN, APP, administered, describe, refused
from tests.support.oip import files_request, infer, infer_request, oip, request_of, rpc, tensors
from tests.support.pictures import encode, photo_like, picture
from tests.support.scrape import ON, scrape
from tests.support.serving import DECODING, connected, gate, serving, until

PNG, OTHER = encode(picture()), encode(picture(40, 30))
BROKEN = PNG[: len(PNG) // 2]


def in_flight(server: Any) -> int:
    """Return how many images use a server's variants."""
    return sum(variant.requests for variant in server.snapshot().variants)


async def native(channel: grpc.aio.Channel, image: image_pb2.Image) -> tuple[Any, Any]:
    """Return probabilities by category, and the embedding, of the server's own contract."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    options = inference_pb2.ClassifyOptions(top_k=1000, include_embedding=True)
    request = inference_pb2.ClassifyRequest(image=image, options=options)
    classification = (await stub.Classify(request)).classification
    probabilities = np.zeros(1000, np.float32)
    for category in classification.categories:
        probabilities[category.index] = category.probability
    return probabilities, np.frombuffer(classification.embedding.values, "<f4")


async def test_each_datatype_gets_the_answers_of_the_own_contract():
    pictures = [photo_like(300, 260, seed) for seed in range(3)]
    pixels = np.stack([np.asarray(one) for one in pictures])
    preset = ResNet50_Weights.IMAGENET1K_V2.transforms()
    normalized = torch.stack([preset(one) for one in pictures]).numpy()
    contents = infer_request("UINT8", list(pixels.shape), None)
    contents.inputs[0].contents.uint_contents.append(varints(pixels.tobytes()))
    floats = infer_request("FP32", list(normalized.shape), None)
    floats.inputs[0].contents.fp32_contents.append(normalized.tobytes())
    files = infer_request("BYTES", [3], None)
    files.inputs[0].contents.bytes_contents.extend(encode(one) for one in pictures)
    requests = {
        "files": files_request(*(encode(one) for one in pictures)),
        "files as contents": files,
        "pixels": infer_request("UINT8", list(pixels.shape), pixels.tobytes()),
        "pixels as contents": contents,
        "normalised": infer_request("FP32", list(normalized.shape), normalized.tobytes()),
        "normalised as contents": floats,
    }
    settings = {"engine": "torch", "variants": ["untrained=random:0"], "max_batch_size": 1}
    async with oip(max_message_bytes=2**24, **settings) as (server, channel):
        digest = server.parts.variants.default.transform.digest
        own = [await native(channel, image_pb2.Image(encoded=encode(one))) for one in pictures]
        # torchvision resizes the whole image, the server what the crop needs: a level may differ.
        own_crops = [await native(channel, cropped(one, digest)) for one in normalized]
        for kind, request in requests.items():
            found = tensors(await infer(channel, request))
            expected = own_crops if kind.startswith("normalised") else own
            for index, (probabilities, embedding) in enumerate(expected):
                np.testing.assert_allclose(
                    found["PROBABILITIES"][index], probabilities, atol=1e-6, err_msg=kind
                )
                np.testing.assert_allclose(
                    found["EMBEDDING"][index], embedding, atol=1e-5, err_msg=kind
                )


def cropped(normalized: np.ndarray, digest: str) -> image_pb2.Image:
    """Return the network's input as an image that its caller has preprocessed."""
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    pixels = np.rint((normalized * std + mean) * 255).astype(np.uint8).transpose(1, 2, 0)
    preprocessed = image_pb2.PreprocessedImage(pixels=pixels.tobytes(), transform_digest=digest)
    return image_pb2.Image(preprocessed=preprocessed)


def varints(content: bytes) -> bytes:
    """Return bytes as a packed field of numbers."""
    return b"".join(bytes([one]) if one < 128 else bytes([one, 1]) for one in content)


async def test_response_names_variant_digest_space_and_timings():
    async with oip() as (_, channel):
        response = await infer(channel, files_request(PNG, OTHER, id="mine"))
    assert (response.model_name, response.model_version, response.id) == ("resnet50", "1", "mine")
    parameters = response.parameters
    assert parameters["variant"].string_param == "IMAGENET1K_V2"
    assert parameters["space"].string_param.startswith("IMAGENET1K_V2@")
    assert len(parameters["digest"].string_param) == 64
    assert parameters["batch_size"].int64_param >= 1
    assert parameters["decode_us"].int64_param > 0
    assert [(one.name, list(one.shape)) for one in response.outputs] == [
        ("PROBABILITIES", [2, 1000]),
        ("EMBEDDING", [2, 2048]),
    ]


async def test_only_the_outputs_that_are_asked_for_are_sent():
    async with oip() as (_, channel):
        response = await infer(channel, files_request(PNG, outputs=("EMBEDDING",)))
    assert [one.name for one in response.outputs] == ["EMBEDDING"]


async def test_classification_extension_sends_labels():
    request = files_request(PNG, OTHER, outputs=("PROBABILITIES",))
    request.outputs[0].parameters["classification"].int64_param = 2
    async with oip() as (_, channel):
        response = await infer(channel, request)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 2])
    labels = tensors(response)["PROBABILITIES"][1].tolist()
    assert [label.split(":")[1:] for label in labels] == [["0", "tench"], ["1", "goldfish"]]
    assert float(labels[0].split(":")[0]) >= float(labels[1].split(":")[0])


async def test_variant_without_head_gives_embeddings_only(tmp_path):
    describe(tmp_path / "backbone", categories=())
    async with oip(variants=[f"backbone={tmp_path / 'backbone'}"]) as (_, channel):
        response = await infer(channel, files_request(PNG))
        assert [one.name for one in response.outputs] == ["EMBEDDING"]
        with refused("FAILED_PRECONDITION", "head"):
            await infer(channel, files_request(PNG, outputs=("PROBABILITIES",)))


async def test_timeout_parameter_is_a_deadline():
    request = files_request(PNG)
    request.parameters["timeout"].int64_param = 50_000
    async with oip() as (server, channel):
        opened = gate(server)
        blocking = asyncio.ensure_future(infer(channel, files_request(OTHER)))
        try:
            await until(lambda: in_flight(server))
            with refused("DEADLINE_EXCEEDED", ""):
                await infer(channel, request)
            assert not opened.is_set()
        finally:
            opened.set()
        await blocking


async def test_earlier_deadline_of_grpc_ends_the_call():
    request = files_request(PNG)
    request.parameters["timeout"].int64_param = 3_600_000_000
    async with oip() as (server, channel):
        opened = gate(server)
        try:
            with refused("DEADLINE_EXCEEDED", ""):
                await infer(channel, request, timeout=0.5)
            await until(lambda: not server.snapshot().variants[0].pending)
        finally:
            opened.set()


async def test_cancelled_request_frees_its_permit():
    async with oip() as (server, channel):
        opened = gate(server)
        call = rpc(channel, "ModelInfer")(files_request(PNG, OTHER))
        await until(lambda: in_flight(server))
        call.cancel()
        opened.set()
        await until(lambda: not in_flight(server))


def normalized_request(count: int) -> Any:
    """Return a request with the network's input, so that nothing has to be decoded."""
    preset = ResNet50_Weights.IMAGENET1K_V2.transforms()
    normalized = torch.stack([preset(picture())] * count).numpy()
    return infer_request("FP32", list(normalized.shape), normalized.tobytes())


async def test_tensor_that_waits_to_be_converted_is_counted():
    request = normalized_request(1)
    async with oip(decode_threads=1) as (server, channel):
        opened, parts = threading.Event(), server.parts
        blocking = parts.decode_pool.submit(partial(opened.wait, 60), NO_REQUEST)
        waiting = asyncio.ensure_future(blocking)
        call = rpc(channel, "ModelInfer")(request)
        try:
            await until(lambda: in_flight(server))  # a replaced variant is kept for it
            assert parts.admission.bytes == request.ByteSize()
        finally:
            opened.set()
        assert (await call).outputs
        await waiting


def refuse_after_first(server: Any, error: Exception) -> None:
    """Make the scheduler refuse images, as it is given them, from the second one on."""
    (scheduler,) = server.parts.devices.schedulers.values()
    submit, submitted = scheduler.submit, []

    def submit_first(*arguments: Any, **options: Any) -> Any:
        submitted.append(arguments)
        if len(submitted) > 1:
            raise error
        return submit(*arguments, **options)

    scheduler.submit = submit_first


async def test_image_refused_at_once_ends_a_call_of_several():
    async with oip() as (server, channel):
        refuse_after_first(server, DeadlineUnreachable("cannot be met"))
        opened = gate(server)
        with refused("DEADLINE_EXCEEDED", "cannot be met"):
            await infer(channel, normalized_request(4))
        opened.set()
        await until(lambda: not in_flight(server) and not server.parts.admission.requests)


async def test_stream_answers_in_order_and_survives_bad_requests():
    requests = [
        files_request(PNG, id="1"),
        files_request(BROKEN, id="2"),
        files_request(OTHER, model_name="pets", id="3"),
        files_request(OTHER, PNG, id="4"),
    ]
    async with oip() as (_, channel):
        call = rpc(channel, "ModelStreamInfer")(iter(requests))
        answers = [answer async for answer in call]
    assert [answer.infer_response.id for answer in answers] == ["1", "2", "3", "4"]
    texts = [answer.error_message for answer in answers]
    assert (texts[0], texts[3]) == ("", "")
    assert "inputs[0][0]" in texts[1] and "pets" in texts[2]
    assert list(answers[3].infer_response.outputs[0].shape) == [2, 1000]
    assert answers[0].infer_response.parameters["triton_final_response"].bool_param


async def test_stream_ends_with_a_status_if_the_client_asks_for_it():
    requests = [files_request(PNG), files_request(BROKEN), files_request(PNG)]
    async with oip() as (_, channel):
        metadata = (("triton_grpc_error", "true"),)
        call = rpc(channel, "ModelStreamInfer")(iter(requests), metadata=metadata)
        answers = []
        with refused("INVALID_ARGUMENT", "inputs[0][0]"):
            async for answer in call:
                answers.append(answer)
    assert len(answers) == 1


async def test_failed_stream_leaves_no_error_unretrieved(caplog):
    async with oip() as (server, channel):
        opened = gate(server)
        metadata = (("triton_grpc_error", "true"),)
        requests = [files_request(PNG), *[files_request(BROKEN)] * 3]
        call = rpc(channel, "ModelStreamInfer")(iter(requests), metadata=metadata)
        await until(lambda: server.parts.admission.requests == 1)
        opened.set()
        assert (await call.read()).infer_response.outputs
        with refused("INVALID_ARGUMENT", "inputs[0][0]"):
            await call.read()
        await until(lambda: not server.parts.admission.requests)
        gc.collect()
    assert "never retrieved" not in caplog.text


async def test_draining_server_ends_a_stream_after_its_requests():
    async with oip() as (server, channel):
        call = rpc(channel, "ModelStreamInfer")()
        await call.write(files_request(PNG))
        assert (await call.read()).infer_response.outputs
        server.drain()
        with refused("UNAVAILABLE", "shutting down"):
            await call.read()


async def test_metadata_config_and_index_describe_the_variants(tmp_path):
    describe(tmp_path / "pets", categories=("cat", "dog", "fox"))
    variants = ["IMAGENET1K_V2", f"pets={tmp_path / 'pets'}"]
    async with oip(variants=variants, response_cache_bytes=2**20) as (_, channel):
        live = await rpc(channel, "ServerLive")(request_of("ServerLive"))
        ready = await rpc(channel, "ServerReady")(request_of("ServerReady"))
        pets = await rpc(channel, "ModelReady")(request_of("ModelReady", name="pets", version="1"))
        assert (live.live, ready.ready, pets.ready) == (True, True, True)
        server = await rpc(channel, "ServerMetadata")(request_of("ServerMetadata"))
        assert server.name == "resnet50-serving" and "statistics" in server.extensions
        model = await rpc(channel, "ModelMetadata")(request_of("ModelMetadata", name="pets"))
        assert [(one.name, list(one.shape)) for one in (*model.inputs, *model.outputs)] == [
            ("IMAGE", [-1, 1]),
            ("PROBABILITIES", [-1, 3]),
            ("EMBEDDING", [-1, 2048]),
        ]
        answer = await rpc(channel, "ModelConfig")(request_of("ModelConfig", name="resnet50"))
        config = answer.config
        assert (config.max_batch_size, list(config.output[0].dims)) == (128, [1000])
        assert config.HasField("dynamic_batching") and config.response_cache.enable
        index = await rpc(channel, "RepositoryIndex")(request_of("RepositoryIndex"))
        assert [(one.name, one.state) for one in index.models] == [
            ("IMAGENET1K_V2", "READY"),
            ("pets", "READY"),
        ]


async def test_statistics_count_images_batches_and_failures():
    async with oip(max_batch_size=4) as (_, channel):
        await infer(channel, files_request(PNG, OTHER, PNG))
        with refused("INVALID_ARGUMENT", ""):
            await infer(channel, files_request(BROKEN))
        with refused("INVALID_ARGUMENT", ""):
            await infer(channel, files_request(BROKEN, BROKEN))
        ask = rpc(channel, "ModelStatistics")
        everything = (await ask(request_of("ModelStatistics"))).model_stats
        (default,) = (await ask(request_of("ModelStatistics", name="resnet50"))).model_stats
    assert [one.name for one in everything] == ["IMAGENET1K_V2"]
    assert default.name == "resnet50"
    statistics = default.inference_stats
    assert (default.inference_count, statistics.success.count, statistics.fail.count) == (3, 3, 2)
    assert 1 <= default.execution_count <= 3
    assert statistics.compute_infer.count == 3 and statistics.compute_infer.ns > 0
    assert default.last_inference > 1.7e12


async def test_calls_are_counted_by_their_methods():
    async with oip(**ON) as (server, channel):
        await infer(channel, files_request(PNG, OTHER))
        found = await scrape(server)
    assert found.of("resnet50_requests_total", "method") == {"ModelInfer": 1.0}


async def fails_of(channel: grpc.aio.Channel) -> int:
    """Return how many failures the statistics of the default variant have."""
    request = request_of("ModelStatistics", name="resnet50")
    (statistics,) = (await rpc(channel, "ModelStatistics")(request)).model_stats
    return statistics.inference_stats.fail.count


FAILING = {"one image": [BROKEN], "batch": [PNG, BROKEN, PNG]}


@pytest.mark.parametrize("files", FAILING.values(), ids=FAILING)
async def test_failed_request_is_counted_once(files):
    async with oip(**ON, **DECODING) as (server, channel):
        with refused("INVALID_ARGUMENT", "inputs[0]"):
            await infer(channel, files_request(*files))
        assert await fails_of(channel) == 1
        found = await scrape(server)
    code = "INVALID_ARGUMENT"
    assert found.of("resnet50_requests_total", "method", "code")["ModelInfer", code] == 1
    assert found.of("resnet50_images_total", "variant", "outcome")["IMAGENET1K_V2", "refused"] == 1
    assert sum(found.of("resnet50_decode_failures_total", "reason").values()) == 1
    # These are of calls that continue.
    assert found.of("resnet50_image_errors_total", "code") == {}


@pytest.mark.parametrize("files", FAILING.values(), ids=FAILING)
async def test_failed_request_of_a_stream_is_counted_once(files):
    async with oip(**ON, **DECODING) as (server, channel):
        call = rpc(channel, "ModelStreamInfer")(iter([files_request(*files)]))
        assert [answer.error_message != "" async for answer in call] == [True]
        assert await fails_of(channel) == 1
        found = await scrape(server)
    assert found.of("resnet50_requests_total", "method", "code")["ModelStreamInfer", "OK"] == 1
    assert found.of("resnet50_images_total", "variant", "outcome")["IMAGENET1K_V2", "refused"] == 1
    assert sum(found.of("resnet50_decode_failures_total", "reason").values()) == 1
    assert found.of("resnet50_image_errors_total", "code") == {"INVALID_ARGUMENT": 1}


@pytest.mark.parametrize("files", FAILING.values(), ids=FAILING)
async def test_stream_that_a_request_ends_is_counted(files):
    async with oip(**ON, **DECODING) as (server, channel):
        metadata = (("triton_grpc_error", "true"),)
        call = rpc(channel, "ModelStreamInfer")(iter([files_request(*files)]), metadata=metadata)
        with refused("INVALID_ARGUMENT", "inputs[0]"):
            await call.read()
        assert await fails_of(channel) == 1
        found = await scrape(server)
    assert found.of("resnet50_requests_total", "method", "variant", "code") == {
        ("ModelStreamInfer", "IMAGENET1K_V2", "INVALID_ARGUMENT"): 1,
        ("ModelStatistics", "", "OK"): 1,
    }
    assert found.of("resnet50_images_total", "variant", "outcome")["IMAGENET1K_V2", "refused"] == 1
    assert sum(found.of("resnet50_decode_failures_total", "reason").values()) == 1
    assert found.of("resnet50_image_errors_total", "code") == {}


async def test_server_error_of_a_stream_is_logged(caplog):
    async with oip() as (server, channel):
        refuse_after_first(server, RuntimeError("of a test"))
        call, texts = rpc(channel, "ModelStreamInfer")(), []
        for file in (PNG, OTHER):
            await call.write(files_request(file))
            texts.append((await call.read()).error_message)
        await call.done_writing()
    assert texts[0] == ""
    assert "internal error" in texts[1]
    assert "of a test" in caplog.text


async def test_bulk_priority_leaves_room_to_interactive_requests():
    request = files_request(PNG)
    request.parameters["priority"].uint64_param = 2
    async with oip(max_requests=4) as (server, channel):
        opened = gate(server)
        calls = [asyncio.ensure_future(infer(channel, files_request(PNG))) for _ in range(3)]
        try:
            await until(lambda: server.parts.admission.requests == 3)
            with refused("RESOURCE_EXHAUSTED", "the rest is reserved for interactive requests"):
                await infer(channel, request)
            stream = rpc(channel, "ModelStreamInfer")(iter([request]))
            await until(lambda: server.parts.admission.waiting == 1)
            calls.append(asyncio.ensure_future(infer(channel, files_request(OTHER))))
            await until(lambda: server.parts.admission.requests == 4)
            assert server.parts.admission.waiting == 1
        finally:
            opened.set()
        for call in calls:
            assert (await call).outputs
        assert (await stream.read()).infer_response.outputs


async def test_tokens_and_scopes_hold(tmp_path: Path):
    describe(tmp_path / "variants" / "pets")
    options = {"oip": True}
    async with (
        administered(tmp_path / "variants", **options) as server,
        connected(server) as channel,
    ):
        app, admin = ((("authorization", f"Bearer {one}"),) for one in (APP, ADMIN))
        assert (await rpc(channel, "ServerReady")(request_of("ServerReady"))).ready
        with refused("UNAUTHENTICATED", "authorization"):
            await infer(channel, files_request(PNG))
        with refused("UNAUTHENTICATED", "authorization"):
            await rpc(channel, "RepositoryIndex")(request_of("RepositoryIndex"))
        assert (await infer(channel, files_request(PNG), metadata=app)).outputs
        load = rpc(channel, "RepositoryModelLoad")
        wanted = request_of("RepositoryModelLoad", model_name="pets")
        with refused("PERMISSION_DENIED", "admin"):
            await load(wanted, metadata=app)
        await load(wanted, metadata=admin)
        await load(wanted, metadata=admin)  # again: clients reload with it
        response = await infer(channel, files_request(PNG, model_name="pets"), metadata=app)
        assert list(response.outputs[0].shape) == [1, 2]
        wanted.parameters["config"].string_param = "{}"
        with refused("INVALID_ARGUMENT", "parameters.config"):
            await load(wanted, metadata=admin)
        unload = request_of("RepositoryModelUnload", model_name="pets")
        unload.parameters["unload_dependents"].bool_param = False
        await rpc(channel, "RepositoryModelUnload")(unload, metadata=admin)
        with refused("NOT_FOUND", "pets"):
            await infer(channel, files_request(PNG, model_name="pets"), metadata=app)


async def test_protocol_is_off_by_default():
    async with serving() as server, connected(server) as channel:
        with refused("UNIMPLEMENTED", ""):
            await infer(channel, files_request(PNG))
