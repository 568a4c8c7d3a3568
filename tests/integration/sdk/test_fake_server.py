"""`resnet50_client.testing`: what users' own tests rely on."""

from __future__ import annotations

import subprocess
import sys

import grpc
import numpy as np
import pytest

import resnet50_client
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client import (
    DeadlineExceededError,
    InvalidImageError,
    OverloadedError,
    PermissionDeniedError,
    PreprocessedImage,
    RawImage,
    RetryPolicy,
    ServerError,
    UnavailableError,
    VariantNotFoundError,
)
from resnet50_client._status import ERRORS, REASONS
from resnet50_client.testing import FakeServer
from tests.support.clients import Caller, items

ONCE = RetryPolicy(attempts=1)


@pytest.fixture
def server():
    with FakeServer(categories=("cat", "dog", "fish"), dimension=8) as fake:
        yield fake


async def test_scripted_answers_come_in_order_then_derived_ones(kind, server):
    server.script({"dog": 0.75, "cat": 0.25}, {"fish": 1.0})
    async with Caller(kind, server.address) as client:
        first, second, third, fourth = [await client.classify(b"image") for _ in range(4)]
    found = [(one.label, one.index, one.probability) for one in first.categories[:2]]
    assert found == [("dog", 1, 0.75), ("cat", 0, 0.25)]
    assert second.top.label == "fish"
    assert third.categories == fourth.categories
    assert sum(one.probability for one in third.categories) == pytest.approx(1.0)


async def test_equal_bytes_get_equal_embeddings(kind, server):
    vector = np.arange(8, dtype=np.float32)
    async with Caller(kind, server.address) as client:
        one, same, other = [await client.embed(image) for image in (b"a", b"a", b"b")]
        server.script(vector)
        scripted = await client.embed(b"a", l2_normalize=True, dtype="float16")
    assert np.array_equal(one.vector, same.vector)
    assert not np.array_equal(one.vector, other.vector)
    np.testing.assert_allclose(scripted.vector, vector / np.linalg.norm(vector), atol=1e-3)
    assert scripted.l2_normalized
    assert scripted.space == one.space


@pytest.mark.parametrize(
    "error_type",
    sorted({*ERRORS.values(), *REASONS.values()}, key=str),
)
async def test_every_error_of_the_sdk_can_be_scripted(kind, server, error_type):
    server.script(error_type("as scripted"))
    async with Caller(kind, server.address, retry=ONCE) as client:
        with pytest.raises(error_type, match="as scripted") as raised:
            await client.classify(b"image")
    assert type(raised.value) is error_type


async def test_fields_of_scripted_errors_arrive(kind, server):
    server.script(
        OverloadedError("full", retry_after_s=0.25, request_id="request-7"),
        PermissionDeniedError("no", scope="admin"),
        InvalidImageError("broken", field="image.encoded"),
        VariantNotFoundError("none", served=("a", "b")),
    )
    raised = []
    async with Caller(kind, server.address, retry=ONCE) as client:
        for _ in range(4):
            with pytest.raises(resnet50_client.Resnet50Error) as error:
                await client.classify(b"image")
            raised.append(error.value)
    assert (raised[0].retry_after_s, raised[0].request_id) == (0.25, "request-7")
    assert raised[1].scope == "admin"
    assert raised[2].field == "image.encoded"
    assert raised[3].served == ("a", "b")


async def test_unavailable_answers_are_retried_by_the_client(kind, server):
    server.script(UnavailableError("restarting"), UnavailableError("restarting"), {"cat": 1.0})
    policy = RetryPolicy(initial_backoff_s=0.01)
    async with Caller(kind, server.address, retry=policy) as client:
        assert (await client.classify(b"image")).top.label == "cat"
    assert len(server.received) == 3


async def test_error_of_one_image_stays_in_its_place(kind, server):
    server.script({"cat": 1.0}, ServerError("broken"), {"dog": 1.0})
    async with Caller(kind, server.address) as client:
        found = [
            one
            async for one in items(
                client, "classify_many", [b"1", b"2", b"3"], return_exceptions=True, max_in_flight=1
            )
        ]
    assert found[0].top.label == "cat"
    assert isinstance(found[1], ServerError)
    assert found[2].top.label == "dog"


async def test_received_images_show_options_pixels_and_metadata(kind, server):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    large = bytes(5 * 2**20)
    async with Caller(kind, server.address, priority="bulk") as client:
        await client.classify(pixels, top_k=2, include_embedding=True, caller_key="user-1")
        await client.embed(large)
    first, second = server.received
    assert first.method == "Classify"
    assert first.options == {"top_k": 2, "include_embedding": True}
    assert (first.image.width, first.image.height, first.image.pixel_format) == (4, 2, "RGB")
    assert first.image.pixels == pixels.tobytes()
    assert first.metadata["x-priority"] == "bulk"
    assert first.metadata["x-caller-key"] == "user-1"
    assert (second.method, second.image) == ("EmbedUpload", large)


async def test_unreadable_frame_takes_no_scripted_answer(kind, server):
    server.script({"cat": 0.9}, {"dog": 0.9})
    async with Caller(kind, server.address) as client:
        frames = ["none.jpg", b"one", b"two"]
        answers = [answer async for answer in items(client, "classify_stream", frames)]
    assert isinstance(answers[0].error, FileNotFoundError)
    assert [answer.result.top.label for answer in answers[1:]] == ["cat", "dog"]
    assert [one.image for one in server.received] == [b"one", b"two"]


async def test_received_yuv_has_its_matrix_and_range(kind, server):
    frame = RawImage(np.zeros((6, 4), dtype=np.uint8), "NV12", "BT709", "full")
    async with Caller(kind, server.address) as client:
        await client.classify(frame)
    (received,) = server.received
    assert (received.image.color_matrix, received.image.color_range) == ("BT709", "full")


async def test_received_upload_may_be_preprocessed(kind, server):
    image = PreprocessedImage(np.zeros((1200, 1200, 3), dtype=np.uint8), "a digest")
    async with Caller(kind, server.address) as client:
        await client.embed(image)
    (received,) = server.received
    assert received.method == "EmbedUpload"
    assert (received.image.transform_digest, len(received.image.pixels)) == ("a digest", 4320000)


async def test_delay_and_health_can_be_set(kind, server):
    server.delay_s, server.serving = 5.0, False
    async with Caller(kind, server.address, retry=ONCE) as client:
        with pytest.raises(DeadlineExceededError):
            await client.classify(b"image", timeout_s=0.2)
        assert await client.health() == "NOT_SERVING"


async def test_variant_is_listed_and_another_one_is_refused(kind, server):
    async with Caller(kind, server.address) as client:
        (listed,) = await client.list_variants()
        with pytest.raises(VariantNotFoundError) as refused:
            await client.classify(b"image", variant="other")
    assert (listed.name, listed.categories) == ("IMAGENET1K_V2", ("cat", "dog", "fish"))
    assert refused.value.served == ("IMAGENET1K_V2",)


def test_batches_are_answered_image_by_image(server):
    server.script({"cat": 1.0}, InvalidImageError("broken"))
    images = [image_pb2.Image(encoded=one) for one in (b"1", b"2", b"3")]
    with grpc.insecure_channel(server.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = stub.ClassifyBatch(inference_pb2.ClassifyBatchRequest(images=images))
    outcomes = [one.WhichOneof("outcome") for one in reply.results]
    assert outcomes == ["classification", "error", "classification"]


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ({"bird": 1.0}, ValueError, "category 'bird' is none of the fake server's: cat, dog, fish"),
        ({"cat": 1.5}, ValueError, "probability of 'cat' is 1.5, must be 0 to 1"),
        ([1.0, 2.0], ValueError, r"shape \[2\], must be \[8\]"),
        ("cat", TypeError, "an answer is str, must be a dict"),
        (None, TypeError, "an answer is NoneType, must be a dict"),
    ],
)
def test_wrong_answers_are_refused_when_scripted(server, answer, error, text):
    with pytest.raises(error, match=text):
        server.script({"cat": 1.0}, answer)


pytest_plugins = ["pytester"]


def test_pytest_fixture_serves_each_test(pytester):
    pytester.makeconftest('pytest_plugins = ["resnet50_client.testing.fixtures"]')
    pytester.makepyfile(
        """
        from resnet50_client import Client

        def test_first(resnet50_server):
            with Client(resnet50_server.address) as client:
                assert client.classify(b"x").top.label in ("tabby", "golden retriever", "goldfish",
                                                           "daisy", "espresso", "sports car")

        def test_second(resnet50_server):
            assert resnet50_server.received == []
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)


def test_fake_server_needs_neither_torch_nor_the_server():
    code = (
        "import sys; from resnet50_client.testing import FakeServer\n"
        "with FakeServer(): pass\n"
        "heavy = ('torch', 'resnet50_server', 'PIL', 'pytest')\n"
        "print([one for one in heavy if one in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
