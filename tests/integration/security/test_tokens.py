"""Tokens at a real server: accepted and rejected callers, and tokens replaced under load."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from resnet50_client._aio_status import keep_status
from resnet50_server.auth import tokens
from resnet50_server.cli.main import main
from tests.support.pictures import encode, picture
from tests.support.serving import connected, gate, serving, until

IMAGE = image_pb2.Image(encoded=encode(picture()))


def bearer(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "tokens.toml"


@pytest.fixture
def new(path, capsys):
    """Make a token by the command; return its secret."""

    def make(name: str, *scopes: str) -> str:
        flags = [part for scope in scopes for part in ("--scope", scope)]
        assert main(["tokens", "new", name, "--file", str(path), *flags]) == 0
        return capsys.readouterr().out.strip()

    return make


def calls(channel: grpc.aio.Channel) -> dict:
    """Return one call of each kind, to be made with metadata."""
    inference = inference_pb2_grpc.InferenceServiceStub(channel)
    variant = variant_pb2_grpc.VariantServiceStub(channel)

    async def unary(metadata):
        await inference.Classify(inference_pb2.ClassifyRequest(image=IMAGE), metadata=metadata)

    async def upload(metadata):
        options = inference_pb2.EmbedUploadRequest(options=inference_pb2.EmbedUploadOptions())
        chunk = inference_pb2.EmbedUploadRequest(chunk=IMAGE.encoded)
        await keep_status(inference.EmbedUpload(iter([options, chunk]), metadata=metadata))

    async def stream(metadata):
        config = inference_pb2.ClassifyStreamRequest(config=inference_pb2.ClassifyStreamConfig())
        async for _ in keep_status(inference.ClassifyStream(iter([config]), metadata=metadata)):
            pass

    async def variants(metadata):
        await variant.ListVariants(variant_pb2.ListVariantsRequest(), metadata=metadata)

    async def reflection(metadata):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for _ in keep_status(stub.ServerReflectionInfo(iter([asked]), metadata=metadata)):
            pass

    return {one.__name__: one for one in (unary, upload, stream, variants, reflection)}


def reason(error: grpc.aio.AioRpcError) -> str:
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(packed).details:
        if detail.Unpack(info):
            return info.reason
    raise AssertionError("no reason")


@pytest.mark.parametrize("kind", ["unary", "upload", "stream", "variants", "reflection"])
async def test_call_needs_a_token_with_its_scope(path, new, kind):
    cameras, loader = new("cameras"), new("loader", "admin")
    async with serving(tokens_file=path) as server, connected(server) as channel:
        call = calls(channel)[kind]
        await call(bearer(cameras))
        for metadata, code, why in (
            ((), "UNAUTHENTICATED", "TOKEN_MISSING"),
            (bearer("wrong"), "UNAUTHENTICATED", "TOKEN_UNKNOWN"),
            (bearer(loader), "PERMISSION_DENIED", "SCOPE_MISSING"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(metadata)
            assert (refused.value.code().name, reason(refused.value)) == (code, why)


async def test_health_needs_no_token(path, new):
    new("cameras")
    async with serving(tokens_file=path) as server, connected(server) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_tokens_are_replaced_under_load_without_a_failed_call(
    path, new, capsys, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(tokens, "CHECK_INTERVAL_S", 0.0)
    secrets = [new("cameras-0")]
    current = secrets[0]
    async with serving(tokens_file=path) as server, connected(server) as channel:
        unary = calls(channel)["unary"]
        answered, ending = 0, False

        async def load() -> None:
            nonlocal answered
            while not ending:
                await unary(bearer(current))
                answered += 1

        async def known(secret: str) -> bool:
            """Return whether a token is taken; a file that has changed is read in a thread."""
            try:
                await unary(bearer(secret))
            except grpc.aio.AioRpcError as refused:
                assert reason(refused) == "TOKEN_UNKNOWN"
                return False
            return True

        async def more() -> None:
            enough = answered + 20
            await until(lambda: answered >= enough or task.done())

        task = asyncio.create_task(load())
        for number in range(1, 6):
            secrets.append(new(f"cameras-{number}"))
            while not await known(secrets[-1]):
                pass
            current = secrets[-1]
            await more()
            old = f"cameras-{number - 1}"
            assert main(["tokens", "revoke", old, "--file", str(path)]) == 0
            capsys.readouterr()
            await more()
            while await known(secrets[-2]):
                pass
        ending = True
        await task
    assert answered >= 200
    assert "cameras-5" in caplog.text
    assert not any(secret in caplog.text for secret in secrets)


async def test_quota_of_requests_is_counted_by_token(path, new):
    first, second = new("first", "infer"), new("second", "infer")
    async with (
        serving(tokens_file=path, max_requests_per_caller=2) as server,
        connected(server) as channel,
    ):
        call, opened = calls(channel)["unary"], gate(server)
        try:
            running = [asyncio.create_task(call(bearer(first))) for _ in range(2)]
            await until(lambda: server.snapshot().requests == 2)
            with pytest.raises(grpc.RpcError) as refused:
                await call(bearer(first))
            assert "max_requests_per_caller (2)" in refused.value.details()
            assert "token:first" in refused.value.details()
            running += [asyncio.create_task(call(bearer(second))) for _ in range(2)]
            await until(lambda: server.snapshot().requests == 4)
        finally:
            opened.set()
        await asyncio.gather(*running)
        await call(bearer(first))


async def test_each_token_is_a_caller_with_limits_of_its_own(path, new):
    first, second = new("first", "infer"), new("second", "infer")
    async with (
        serving(tokens_file=path, max_rate_per_caller=0.01) as server,
        connected(server) as channel,
    ):
        call = calls(channel)["unary"]
        await call(bearer(first))
        with pytest.raises(grpc.RpcError) as refused:
            await call(bearer(first))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_rate_per_caller (0.01 images/s): token:first" in refused.value.details()
        await call(bearer(second))
