from __future__ import annotations

import asyncio
import re
import threading

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    inference_pb2_grpc,
    result_pb2,
    variant_pb2,
    variant_pb2_grpc,
)
from tests.support.pictures import encode, picture
from tests.support.serving import DECODING, computed, connected, server_processes, serving

PNG = encode(picture())


def classify_request(encoded: bytes = PNG, **options) -> inference_pb2.ClassifyRequest:
    return inference_pb2.ClassifyRequest(
        options=inference_pb2.ClassifyOptions(**options), image=image_pb2.Image(encoded=encoded)
    )


def details(error: grpc.RpcError) -> dict[str, object]:
    """Return the google.rpc details of a failed call by message name."""
    status = status_pb2.Status.FromString(
        dict(error.trailing_metadata())["grpc-status-details-bin"]
    )
    found = {}
    for packed in status.details:
        message = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        packed.Unpack(message)
        found[packed.TypeName().rpartition(".")[2]] = message
    return found


async def test_classify_replies_with_variant_timing_and_top_5():
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = await stub.Classify(classify_request())
    assert [category.index for category in reply.classification.categories] == [0, 1, 2, 3, 4]
    assert reply.classification.categories[0].label == "tench"
    assert reply.variant.name == "IMAGENET1K_V2"
    assert len(reply.variant.digest) == 64
    assert reply.timing.batch_size == 1
    timing = reply.timing
    assert timing.total_us >= timing.decode_us + timing.queue_us + timing.compute_us


async def test_embed_honours_type_and_normalisation():
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        options = inference_pb2.EmbedOptions(
            l2_normalize=True, type=result_pb2.EMBEDDING_TYPE_FLOAT16
        )
        reply = await stub.Embed(
            inference_pb2.EmbedRequest(options=options, image=image_pb2.Image(encoded=PNG))
        )
    vector = np.frombuffer(reply.embedding.values, "<f2")
    assert vector.shape == (2048,) == (reply.embedding.dimension,)
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1.0, abs=1e-3)
    assert reply.embedding.space == f"IMAGENET1K_V2@{reply.variant.digest[:12]}"
    assert reply.embedding.l2_normalized


@pytest.mark.parametrize(
    ("request_", "code", "field", "text"),
    [
        (inference_pb2.ClassifyRequest(), "INVALID_ARGUMENT", "image", "image.encoded"),
        (classify_request(b""), "INVALID_ARGUMENT", "image.encoded", "0 bytes"),
        (classify_request(b"not an image"), "INVALID_ARGUMENT", "image.encoded", "JPEG"),
        (classify_request(PNG[:200]), "INVALID_ARGUMENT", "image.encoded", "broken"),
        (classify_request(bytes(70_000)), "INVALID_ARGUMENT", "image.encoded", "max_image_bytes"),
        (
            classify_request(encode(picture(300, 300))),
            "INVALID_ARGUMENT",
            "image.encoded",
            "max_image_pixels",
        ),
        (classify_request(top_k=1001), "INVALID_ARGUMENT", "options.top_k", "1000"),
        (
            classify_request(min_probability=1.5),
            "INVALID_ARGUMENT",
            "options.min_probability",
            "0 to 1",
        ),
        (classify_request(variant="cats"), "NOT_FOUND", None, "IMAGENET1K_V2"),
    ],
)
async def test_bad_request_is_refused_with_field_and_limit(request_, code, field, text):
    async with (
        serving(max_image_bytes=60_000, max_image_pixels=80_000, **DECODING) as server,
        connected(server) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            await stub.Classify(request_)
        error = refused.value
        assert error.code().name == code
        assert text in error.details()
        if field is not None:
            (violation,) = details(error)["BadRequest"].field_violations
            assert violation.field == field
        assert details(error)["RequestInfo"].request_id
        # The same connection stays open.
        assert (await stub.Classify(classify_request())).timing.batch_size == 1


async def test_bad_input_never_reaches_the_engine():
    async with (
        serving(max_image_bytes=60_000, **DECODING) as server,
        connected(server) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        batches = computed(server)
        raw = image_pb2.RawImage(width=8, height=8, pixel_format=99, pixels=bytes(192))
        bad = [
            classify_request(b""),
            classify_request(b"not an image"),
            classify_request(PNG[:200]),
            classify_request(bytes(60_001)),
            classify_request(top_k=1001),
            classify_request(variant="cats"),
            inference_pb2.ClassifyRequest(image=image_pb2.Image(raw=raw)),
            inference_pb2.ClassifyRequest(),
        ]
        good = [classify_request() for _ in range(8)]
        pairs = [request for pair in zip(bad, good, strict=True) for request in pair]
        outcomes = await asyncio.gather(*map(stub.Classify, pairs), return_exceptions=True)
    assert [isinstance(one, grpc.RpcError) for one in outcomes] == [True, False] * 8
    assert sum(map(len, batches)) == 8


@pytest.mark.parametrize("method", ["Classify", "Embed", "ClassifyUpload", "ClassifyStream"])
async def test_malformed_message_is_an_invalid_argument(method, caplog):
    garbage = b"\xff\xff\xff\xff\xff"
    async with serving() as server, connected(server) as channel:
        path = f"/resnet50.v1.InferenceService/{method}"
        if method.endswith("Upload"):
            call = channel.stream_unary(path)(iter([garbage]))
        elif method.endswith("Stream"):
            call = channel.stream_stream(path)(iter([garbage]))
        else:
            call = channel.unary_unary(path)(garbage)
        with pytest.raises(grpc.RpcError) as refused:
            if method.endswith("Stream"):
                await call.read()
                await call
            await call
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "message: is not the protobuf message" in await call.details()
        assert refused.value is not None
    assert "Traceback" not in caplog.text


async def test_raw_pixels_are_classified_and_unknown_formats_refused():
    raw = image_pb2.RawImage(
        width=8, height=8, pixel_format=image_pb2.PIXEL_FORMAT_NV12, pixels=bytes(96)
    )
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = await stub.Classify(inference_pb2.ClassifyRequest(image=image_pb2.Image(raw=raw)))
        assert len(reply.classification.categories) == 5
        raw.pixel_format = 99
        with pytest.raises(grpc.RpcError, match="must be one of PIXEL_FORMAT_RGB"):
            await stub.Classify(inference_pb2.ClassifyRequest(image=image_pb2.Image(raw=raw)))
        with pytest.raises(grpc.RpcError, match=r"options\.type: is 99"):
            await stub.Embed(
                inference_pb2.EmbedRequest(
                    options=inference_pb2.EmbedOptions(type=99),
                    image=image_pb2.Image(encoded=PNG),
                )
            )


async def test_compressed_message_is_held_to_the_limit_of_its_content():
    """200 KB of the same byte travel as some hundred bytes."""
    async with serving(max_image_bytes=1000, max_message_bytes=100_000) as server:
        options = [("grpc.default_compression_algorithm", 2)]  # gzip
        async with grpc.aio.insecure_channel(server.addresses[0], options=options) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                await stub.Classify(classify_request(bytes(200_000)))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            small = await stub.Classify(classify_request(encode(picture(8, 8))))
            assert len(small.classification.categories) == 5


async def test_two_hundred_concurrent_calls_share_batches():
    async with (
        serving(engine="timed", timed_alpha_ms=20, timed_beta_ms=0.1) as server,
        connected(server) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        replies = await asyncio.gather(
            *(stub.Classify(classify_request(top_k=1 + number)) for number in range(200))
        )
    assert [len(reply.classification.categories) for reply in replies] == list(range(1, 201))
    assert max(reply.timing.batch_size for reply in replies) > 1
    assert all(reply.timing.batch_size <= 32 for reply in replies)


async def test_overload_is_refused_at_once_with_retry_info():
    async with (
        serving(engine="timed", timed_alpha_ms=200, max_queue_size=1, max_batch_size=1) as server,
        connected(server) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        outcomes = await asyncio.gather(
            *(stub.Classify(classify_request()) for _ in range(8)), return_exceptions=True
        )
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.RpcError)]
    assert refused
    for error in refused:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_queue_size (1)" in error.details()
        assert details(error)["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
    assert len(refused) < 8


async def test_top_k_of_all_categories_is_answered():
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = await stub.Classify(classify_request(top_k=1000))
    indices = [category.index for category in reply.classification.categories]
    assert sorted(indices) == list(range(1000))


async def test_min_probability_keeps_categories_that_reach_it():
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        every = (await stub.Classify(classify_request())).classification.categories
        least = min(category.probability for category in every)
        for excess, kept in ((0.0, len(every)), (1e-6, len(every) - 1)):
            request = classify_request(min_probability=least + excess)
            categories = (await stub.Classify(request)).classification.categories
            assert len(categories) == kept


async def test_request_id_of_the_caller_comes_back():
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Classify(classify_request(), metadata=(("x-request-id", "frame-7"),))
        await call
        assert ("x-request-id", "frame-7") in tuple(await call.trailing_metadata())


@pytest.mark.parametrize("sent", ["", "frame 7", "frame-7;", "a" * 129])
async def test_invalid_request_id_is_replaced(sent):
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Classify(classify_request(), metadata=(("x-request-id", sent),))
        await call
        ((_, request_id),) = (
            one for one in await call.trailing_metadata() if one[0] == "x-request-id"
        )
        assert request_id != sent and re.fullmatch("[0-9a-f]{32}", request_id)


async def test_health_is_per_service_and_unknown_ones_not_found():
    async with serving() as server, connected(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "resnet50.v1.InferenceService", "resnet50.v1.VariantService"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            await stub.Check(health_pb2.HealthCheckRequest(service="unknown"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_variants_are_listed_default_first_and_found_by_alias():
    async with (
        serving(
            variants=["IMAGENET1K_V1", "DEFAULT", "untrained=random:0"],
            default_variant="IMAGENET1K_V2",
        ) as server,
        connected(server) as channel,
    ):
        stub = variant_pb2_grpc.VariantServiceStub(channel)
        listed = (await stub.ListVariants(variant_pb2.ListVariantsRequest())).variants
        found = (
            await stub.GetVariant(
                variant_pb2.GetVariantRequest(name="ResNet50_Weights.IMAGENET1K_V1")
            )
        ).variant
        aliased = (await stub.GetVariant(variant_pb2.GetVariantRequest(name="DEFAULT"))).variant
    assert [variant.name for variant in listed] == ["IMAGENET1K_V2", "IMAGENET1K_V1", "untrained"]
    assert (found.transform.resize, found.transform.crop) == (256, 224)
    assert (aliased.name, aliased.transform.resize) == ("IMAGENET1K_V2", 232)
    assert len(found.categories) == found.category_count == 1000
    assert found.published_accuracy.acc_at_1 == pytest.approx(76.13)


def test_sigterm_answers_what_was_accepted_and_exits_zero():
    with server_processes() as start:
        process = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "timed", "--timed-alpha-ms", "1500"),
            *("--max-requests", "1"),
        )
        with grpc.insecure_channel(process.wait_until_listening()) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            one_refused = threading.Event()
            calls = [stub.Classify.future(classify_request()) for _ in range(2)]
            for call in calls:
                call.add_done_callback(lambda _: one_refused.set())
            # There is room for one: once the other has been refused, it is inside.
            assert one_refused.wait(30)
            status, errors = process.terminate()
            assert sorted(call.code().name for call in calls) == ["OK", "RESOURCE_EXHAUSTED"]
    assert status == 0, errors


def test_missing_weights_are_one_clear_message_and_never_random(tmp_path):
    with server_processes() as start:
        process = start(
            *("--variants", "IMAGENET1K_V2", "--no-download", "--weights-dir", str(tmp_path))
        )
        _, errors = process.process.communicate(timeout=60)
    assert process.process.returncode == 1
    for part in ("resnet50-11ad3fa6.pth", "https://", str(tmp_path), "random:0"):
        assert part in errors
    assert "Traceback" not in errors
