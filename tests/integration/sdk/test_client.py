from __future__ import annotations

import asyncio
import gc
import socket
import threading

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

import resnet50_client
from resnet50_client import AsyncClient, Client, RawImage, RetryPolicy
from resnet50_client._status import ERRORS
from tests.support.clients import Caller, items
from tests.support.pictures import encode, photo_like
from tests.support.scripted_calls import scripted
from tests.support.serving import gate, queues_of, serving, until

RGB = np.asarray(photo_like(64, 48))
PNG = encode(Image.fromarray(RGB))


async def test_every_image_type_gives_the_same_embedding(kind, untrained_server, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    bgr = RGB[:, :, ::-1]
    async with Caller(kind, untrained_server) as client:
        expected = (await client.embed(PNG)).vector
        with path.open("rb") as file:
            for image, options in (
                (path, {}),
                (str(path), {}),
                (file, {}),
                (Image.fromarray(RGB), {}),
                (RGB, {}),
                (torch.from_numpy(RGB.copy()).permute(2, 0, 1), {}),
                (bgr, {"pixel_format": "BGR"}),
            ):
                vector = (await client.embed(image, **options)).vector
                np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-4)
        swapped = (await client.embed(bgr)).vector
    assert not np.allclose(swapped, expected, rtol=1e-2)


async def test_classification_is_typed_and_complete(kind, untrained_server):
    async with Caller(kind, untrained_server) as client:
        result = await client.classify(PNG, top_k=3, include_embedding=True)
        alone = await client.embed(PNG)
    probabilities = [category.probability for category in result]
    assert len(result) == len(probabilities) == 3
    assert probabilities == sorted(probabilities, reverse=True)
    assert result.top == result.categories[0]
    assert result.top.label in repr(result)
    assert result.variant.name == "untrained"
    assert result.timing.batch_size == 1
    assert 0 < result.timing.compute_ms <= result.timing.total_ms
    np.testing.assert_allclose(result.embedding.vector, alone.vector, rtol=1e-4, atol=1e-4)
    assert result.embedding.cosine(alone) == pytest.approx(1.0)


async def test_embedding_honours_dtype_and_length(kind, untrained_server):
    async with Caller(kind, untrained_server) as client:
        plain = await client.embed(PNG)
        unit = await client.embed(PNG, l2_normalize=True)
        half = await client.embed(PNG, dtype="float16")
    assert (plain.vector.dtype, plain.vector.shape) == (np.float32, (2048,))
    assert half.vector.dtype == np.float16
    assert np.linalg.norm(unit.vector) == pytest.approx(1.0, abs=1e-5)
    assert unit.l2_normalized and not plain.l2_normalized
    assert unit.cosine(plain) == pytest.approx(1.0, abs=1e-5)
    assert (np.asarray(plain) == plain.vector).all()


def cut_out(hidden: tuple[int, int, int]) -> Image.Image:
    """Return a picture whose left half is transparent, and has this colour there."""
    image = Image.fromarray(RGB).convert("RGBA")
    image.paste((*hidden, 0), (0, 0, 32, 48))
    return image


async def test_hidden_pixels_count_only_without_a_background(kind, untrained_server):
    black, red = cut_out((0, 0, 0)), cut_out((250, 10, 20))
    spelled = [lambda image: image, np.asarray, encode]
    white = Image.fromarray(RGB)
    white.paste((255, 255, 255), (0, 0, 32, 48))
    async with Caller(kind, untrained_server) as client:
        expected = (await client.embed(white)).vector
        for spell in spelled:
            images = [spell(black), spell(red)]
            vectors = [(await client.embed(image, background="white")).vector for image in images]
            streamed = [
                one.vector
                async for one in items(client, "embed_many", images, background="#ffffff")
            ]
            for vector in (*vectors, *streamed):
                np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-4)
            one, other = [(await client.embed(image)).vector for image in images]
            assert not np.allclose(one, other, rtol=1e-2)


async def test_matrix_and_range_of_a_frame_are_applied(kind, untrained_server):
    luma = np.asarray(Image.fromarray(RGB).convert("L"))
    planes = np.concatenate([luma, np.full((24, 64), 90, dtype=np.uint8)])
    async with Caller(kind, untrained_server) as client:
        default = (await client.embed(planes, pixel_format="NV12")).vector
        said = RawImage(planes, "NV12", "BT601", "limited")
        np.testing.assert_allclose((await client.embed(said)).vector, default, rtol=1e-4, atol=1e-4)
        for other in (RawImage(planes, "NV12", "BT709"), RawImage(planes, "NV12", None, "full")):
            assert not np.allclose((await client.embed(other)).vector, default, rtol=1e-2)


async def test_min_probability_may_leave_nothing(kind, untrained_server):
    async with Caller(kind, untrained_server) as client:
        result = await client.classify(PNG, min_probability=1.0)
    assert result.categories == ()
    with pytest.raises(IndexError, match="min_probability"):
        _ = result.top


async def test_embeddings_of_different_weights_are_not_compared(kind):
    async with (
        serving(variants=["IMAGENET1K_V1", "IMAGENET1K_V2"]) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        one = await client.embed(PNG, variant="IMAGENET1K_V1")
        two = await client.embed(PNG, variant="DEFAULT")
    with pytest.raises(ValueError, match=r"IMAGENET1K_V1@.*IMAGENET1K_V2@"):
        one.cosine(two)


async def test_variants_are_described(kind):
    async with (
        serving(variants=["IMAGENET1K_V1", "IMAGENET1K_V2"]) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        listed = await client.list_variants()
        default = await client.get_variant()
        spelled = await client.get_variant("ResNet50_Weights.DEFAULT")
        (learned,) = {queue.latency for queue in queues_of(server) if queue.name == default.name}
    assert default.latency == listed[0].latency
    assert default.latency.alpha_ms == pytest.approx(learned.alpha_s * 1e3)
    assert default.latency.beta_ms == pytest.approx(learned.beta_s * 1e3)
    # Learned while warming up; either may be 0.
    assert default.latency.alpha_ms + default.latency.beta_ms > 0
    assert [variant.name for variant in listed] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert (default.name, default.server_default, default.state) == ("IMAGENET1K_V1", True, "ready")
    assert (spelled.name, spelled.transform.resize) == ("IMAGENET1K_V2", 232)
    assert spelled.published_accuracy.acc_at_1 == pytest.approx(80.858)
    assert spelled.categories[207] == "golden retriever"
    assert listed[0].categories == ()


async def test_errors_are_ours_and_say_what_to_do(kind):
    async with (
        serving(max_image_bytes=60_000) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        with pytest.raises(resnet50_client.InvalidImageError, match="not a readable") as broken:
            await client.classify(b"not an image")
        with pytest.raises(resnet50_client.InvalidImageError, match="max_image_bytes"):
            await client.embed(bytes(60_001))
        with pytest.raises(resnet50_client.InvalidRequestError, match="top_k") as wrong:
            await client.classify(PNG, top_k=1001)
        with pytest.raises(resnet50_client.InvalidRequestError, match="top_k"):
            await client.classify(PNG, top_k=-1)
        with pytest.raises(resnet50_client.InvalidRequestError, match="float32, float16"):
            await client.embed(PNG, dtype="float64")
        with pytest.raises(resnet50_client.VariantNotFoundError, match="cats") as missing:
            await client.get_variant("cats")
    assert (broken.value.field, broken.value.code) == ("image.encoded", "INVALID_ARGUMENT")
    assert broken.value.request_id
    assert isinstance(broken.value.__cause__, grpc.RpcError)
    assert isinstance(broken.value, ValueError)
    assert not isinstance(wrong.value, resnet50_client.InvalidImageError)
    assert missing.value.served == ("DEFAULT", "IMAGENET1K_V2")
    assert isinstance(missing.value, LookupError)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"top_k": "3"}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"variant": 3}, "variant"),
        ({"variant": "\ud800"}, "variant"),
        ({"min_probability": "much"}, "min_probability"),
    ],
    ids=str,
)
async def test_option_of_a_wrong_type_is_named(kind, options, field):
    async with Caller(kind, "127.0.0.1:1") as client:
        with pytest.raises(
            resnet50_client.InvalidRequestError, match=rf"^(options\.)?{field}: "
        ) as wrong:
            await client.classify(PNG, **options)
    assert wrong.value.field == f"options.{field}"


async def test_message_over_the_transports_limit_is_an_invalid_image(kind):
    async with (
        serving(max_image_bytes=1000, max_message_bytes=100_000) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        with pytest.raises(resnet50_client.InvalidImageError, match=r"max_message_bytes\) is 1000"):
            await client.classify(bytes(200_000))
        assert len(await client.classify(PNG[:0] + encode(photo_like(8, 8)))) == 5


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=str
)
async def test_every_status_code_is_one_of_our_errors(kind, code):
    with scripted(*[code] * 9) as (address, _):
        async with Caller(kind, address, retry=RetryPolicy(attempts=1)) as client:
            with pytest.raises(resnet50_client.Resnet50Error) as failed:
                await client.classify(PNG)
    assert type(failed.value) is ERRORS[code]
    assert failed.value.code == code.name
    assert "scripted" in str(failed.value)


async def test_deadline_is_a_timeout_error(kind):
    async with (
        serving(engine="timed", timed_alpha_ms=400) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        with pytest.raises(TimeoutError, match="allow more time") as late:
            await client.classify(PNG, timeout_s=0.2)
    assert isinstance(late.value, resnet50_client.DeadlineExceededError)


async def test_no_server_is_unavailable_and_names_the_address(kind):
    async with Caller(kind, "127.0.0.1:1", retry=RetryPolicy(attempts=1)) as client:
        with pytest.raises(resnet50_client.UnavailableError, match=r"127\.0\.0\.1:1: "):
            await client.classify(PNG)


async def test_unix_socket(kind, tmp_path):
    address = f"unix:{tmp_path}/r.sock"
    async with serving(listen=[address]), Caller(kind, address) as client:
        assert len(await client.classify(PNG)) == 5


async def test_wait_until_ready_returns_when_a_server_has_come(kind):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    async with Caller(kind, address) as client:
        waiting = asyncio.ensure_future(client.wait_until_ready(timeout_s=30))
        with pytest.raises(resnet50_client.UnavailableError):
            await client.health(timeout_s=0.2)
        assert not waiting.done()
        async with serving(listen=[address]):
            await waiting
            assert await client.health() == "SERVING"
            assert await client.health("resnet50.v1.InferenceService") == "SERVING"


async def test_wait_until_ready_says_what_it_saw(kind):
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        server.parts.admission.draining = True
        server.parts.health.update()
        with pytest.raises(TimeoutError, match=r"within 0\.3 s; last status: NOT_SERVING"):
            await client.wait_until_ready(timeout_s=0.3)
    async with Caller(kind, "127.0.0.1:1") as client:
        with pytest.raises(resnet50_client.DeadlineExceededError, match="Connection refused"):
            await client.wait_until_ready(timeout_s=2)


async def test_closed_client_says_so(kind):
    async with serving() as server:
        async with Caller(kind, server.addresses[0]) as client:
            await client.classify(PNG)
        with pytest.raises(RuntimeError, match="is closed; create a new one"):
            await client.classify(PNG)
        await client.close()


async def test_close_ends_calls_under_way(kind):
    async with serving() as server:
        client, opened = Caller(kind, server.addresses[0]), gate(server)
        call = asyncio.ensure_future(client.classify(PNG))
        try:
            await until(lambda: server.snapshot().requests)
            await client.close()
            with pytest.raises(resnet50_client.CallCancelledError):
                await call
        finally:
            opened.set()


async def test_cancelled_task_frees_its_place_at_the_server():
    async with serving(max_batch_size=1) as server, AsyncClient(server.addresses[0]) as client:
        opened, (queue,) = gate(server), queues_of(server)
        try:
            running = asyncio.create_task(client.classify(PNG))
            await until(lambda: server.snapshot().batches["cpu"])
            waiting = asyncio.create_task(client.classify(PNG))
            await until(lambda: len(queue.waiting) == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await until(lambda: server.snapshot().requests == 1)
        finally:
            opened.set()
        assert (await running).timing.batch_size == 1


async def test_one_client_serves_many_threads():
    async with (
        serving(engine="timed", timed_alpha_ms=5) as server,
    ):
        with Client(server.addresses[0]) as client:
            results = await asyncio.gather(
                *(asyncio.to_thread(client.classify, PNG, top_k=k) for k in range(1, 33))
            )
    assert [len(result) for result in results] == list(range(1, 33))


def test_async_client_belongs_to_one_loop(null_address):
    client = AsyncClient(null_address)

    async def call() -> None:
        await client.classify(PNG)

    first = asyncio.new_event_loop()
    first.run_until_complete(call())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(call())
    first.run_until_complete(client.close())
    first.close()


async def test_closed_clients_leave_no_thread_behind(null_address):
    with Client(null_address) as client:
        client.classify(PNG)
    before = set(threading.enumerate())
    for _ in range(5):
        with Client(null_address) as client:
            client.classify(PNG)
    del client
    gc.collect()
    await until(lambda: not set(threading.enumerate()) - before)


async def test_health_of_an_unknown_service_is_an_answer(kind):
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        assert await client.health("unknown") == "SERVICE_UNKNOWN"


async def test_proxies_of_the_web_are_not_asked(kind, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        assert len(await client.classify(PNG)) == 5


def test_reprs_name_the_servers():
    with Client(["127.0.0.1:1", "127.0.0.1:2"]) as client:
        assert repr(client) == "Client('127.0.0.1:1, 127.0.0.1:2')"
    assert repr(AsyncClient("unix:/x")) == "AsyncClient('unix:/x')"
