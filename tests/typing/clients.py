"""Uses of the clients as in applications: checked by mypy and pyright, never run."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import grpc
import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from typing_extensions import assert_type

from resnet50_client import (
    AsyncClient,
    CallObserver,
    Classification,
    Client,
    Embedding,
    ImageInput,
    InvalidImageError,
    ObservedCall,
    OverloadedError,
    RawImage,
    Resnet50Error,
    RetryPolicy,
    Variant,
    VideoFrame,
    frames_from_video,
)
from resnet50_client.admin import AdminClient, AsyncAdminClient
from resnet50_client.testing import FakeServer
from resnet50_client.types import Compression, Dtype, PixelFormat, Priority


def construct(observers: list[CallObserver]) -> Client:
    with Client() as local:
        assert_type(local, Client)
    Client("unix:/run/resnet50.sock", timeout_s=5, retry=RetryPolicy(attempts=3))
    Client(["a:50051", "b:50051"], tls=True, ca=Path("ca.pem"), token=lambda: "secret")
    Client("a:50051", ca=b"-----BEGIN CERTIFICATE-----", priority="bulk", observers=observers)
    assert_type(Client.from_environment(), Client)
    assert_type(Client.from_profile("prod", timeout_s=1.0), Client)
    Client(lambda: ["a:50051", "b:50051"])
    assert_type(Client.from_ray("shop", address="10.0.0.1:6379", timeout_s=1.0), Client)
    derived = Client().with_options(variant="IMAGENET1K_V1", metadata={"x-tenant": "a"})
    assert_type(derived, Client)
    return derived


def settings(
    blocking: list[grpc.UnaryUnaryClientInterceptor],
    asynchronous: list[grpc.aio.UnaryUnaryClientInterceptor],
) -> None:
    async def token() -> str:
        return "secret"

    compression: Compression = "gzip"
    Client(
        variant="IMAGENET1K_V1",
        channel_options={"grpc.keepalive_time_ms": 60_000},
        interceptors=blocking,
        compression=compression,
        wait_for_ready=True,
        connections=2,
    )
    AsyncClient(token=token, interceptors=asynchronous)
    AsyncAdminClient(token=token)


def options_of_a_call(client: Client) -> None:
    priority: Priority = "bulk"
    dtype: Dtype = "float16"
    pixel_format: PixelFormat = "BGR"
    result = client.embed(
        np.zeros((8, 8, 3), np.uint8),
        variant=None,
        dtype=dtype,
        pixel_format=pixel_format,
        timeout_s=1.0,
        priority=priority,
        caller_key="user-1",
        metadata={"x-tenant": "a"},
        request_id="request-7",
    )
    assert_type(result.request_id, str | None)
    client.classify("cat.jpg", priority="urgent")  # type: ignore[arg-type]
    client.classify("cat.jpg", pixel_format="rgb")  # type: ignore[arg-type]
    client.embed("cat.jpg", dtype="float64")  # type: ignore[arg-type]


def images(client: Client, array: NDArray[np.uint8]) -> None:
    client.classify("cat.jpg")
    client.classify(Path("cat.jpg"))
    client.classify(b"...")
    client.classify(bytearray(b"..."))
    client.classify(io.BytesIO(b"..."))
    client.classify(array, pixel_format="BGR")
    client.classify(PIL.Image.new("RGB", (8, 8)))
    client.classify(torch.zeros(3, 8, 8, dtype=torch.uint8))
    client.classify(RawImage(array, "NV12", color_matrix="BT709"))
    client.classify(VideoFrame(array, "I420", time_s=0.0, number=0))
    with open("cat.jpg", "rb") as file:
        client.classify(file)


def pass_on(client: Client, image: ImageInput | None) -> Embedding | None:
    return None if image is None else client.embed(image)


def results(client: Client) -> dict[str, float]:
    result = client.classify("cat.jpg", top_k=3, min_probability=0.1, include_embedding=True)
    assert_type(result, Classification)
    assert_type(result.top.label, str)
    assert_type(result.top.probability, float)
    assert_type(result.variant.name, str)
    assert_type(result.timing.queue_ms, float)
    assert_type(client.embed("cat.jpg", l2_normalize=True, dtype="float16"), Embedding)
    return {category.label: category.probability for category in result}


def errors(client: Client) -> float | None:
    try:
        client.classify("cat.jpg")
    except InvalidImageError as error:
        assert_type(error.field, str | None)
    except OverloadedError as error:
        return error.retry_after_s
    except TimeoutError:
        return 0.0
    except Resnet50Error as error:
        assert_type(error.request_id, str | None)
    return None


def variants(client: Client) -> None:
    client.wait_until_ready(timeout_s=10)
    assert_type(client.list_variants(), list[Variant])
    assert_type(client.get_variant("IMAGENET1K_V2").name, str)


def video(client: Client) -> Iterable[int]:
    for answer in client.classify_stream(frames_from_video("clip.mp4"), delivery="latest"):
        assert_type(answer.result, Classification | None)
        yield answer.frame_id


def administration() -> None:
    with AdminClient("a:50051", token_file="admin-token") as admin:
        admin.load_variant("IMAGENET1K_V1", timeout_s=None)
        assert_type(admin.list_variants(), list[Variant])


class Counter(CallObserver):
    """Counts calls."""

    def __init__(self) -> None:
        self.ended = 0

    def call_ended(self, call: ObservedCall) -> None:
        self.ended += 1


def own_tests() -> None:
    with FakeServer(categories=("cat", "dog")) as server, Client(server.address) as client:
        server.script({"cat": 0.9}, OverloadedError("full", retry_after_s=0.1))
        assert_type(client.classify(b"any").top.label, str)
        assert_type(server.received[0].method, str)


async def asynchronous() -> None:
    async with AsyncClient("a:50051") as client:
        assert_type(client, AsyncClient)
        assert_type(await client.classify("cat.jpg"), Classification)
        assert_type(await client.embed("cat.jpg"), Embedding)
        assert_type(await client.list_variants(), list[Variant])
        async for answer in client.embed_stream(["a.jpg", "b.jpg"]):
            assert_type(answer.result, Embedding | None)
    async with AsyncAdminClient("a:50051") as admin:
        await admin.unload_variant("IMAGENET1K_V1")
