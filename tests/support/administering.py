"""Servers whose variants may be changed: folders to load from, tokens to do it with."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from resnet50_server.auth.tokens import digest_of
from resnet50_server.lifecycle import loader
from resnet50_server.server import Server
from tests.support.pictures import encode, picture
from tests.support.serving import connected, serving

ADMIN, APP = "a" * 43, "i" * 43
IMAGE = image_pb2.Image(encoded=encode(picture()))
READY, LOADING = variant_pb2.VARIANT_STATE_READY, variant_pb2.VARIANT_STATE_LOADING
DRAINING, FAILED = variant_pb2.VARIANT_STATE_DRAINING, variant_pb2.VARIANT_STATE_FAILED
_SCOPES = {"operator": (ADMIN, ["admin", "infer"]), "app": (APP, ["infer"])}


class Administrator:
    """Calls a server with a token that may change variants."""

    def __init__(self, server: Server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.variants = variant_pb2_grpc.VariantServiceStub(channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)

    def token(self, secret: str = ADMIN) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {secret}"),)

    async def load(self, name: str, token: str = ADMIN) -> variant_pb2.Variant:
        request = variant_pb2.LoadVariantRequest(name=name)
        return (await self.variants.LoadVariant(request, metadata=self.token(token))).variant

    async def unload(self, name: str, token: str = ADMIN) -> variant_pb2.Variant:
        request = variant_pb2.UnloadVariantRequest(name=name)
        return (await self.variants.UnloadVariant(request, metadata=self.token(token))).variant

    async def states(self) -> dict[str, int]:
        request = variant_pb2.ListVariantsRequest()
        listed = await self.variants.ListVariants(request, metadata=self.token())
        return {one.name: one.state for one in listed.variants}

    def classify(self, variant: str) -> Any:
        options = inference_pb2.ClassifyOptions(variant=variant, top_k=1)
        request = inference_pb2.ClassifyRequest(options=options, image=IMAGE)
        return self.inference.Classify(request, metadata=self.token())


def describe(directory: Path, categories: Sequence[str] = ("a", "b"), **more: Any) -> None:
    """Write what the null engine reads of a variant: its description."""
    directory.mkdir(parents=True, exist_ok=True)
    transform = {"resize": 232, "crop": 224, "mean": [0.5] * 3, "std": [0.25] * 3}
    content = {"categories": list(categories), "transform": transform, **more}
    (directory / "variant.json").write_text(json.dumps(content))


def tokens_file(folder: Path) -> Path:
    """Write a file of two tokens: ADMIN, which may do anything, and APP, which may not."""
    path = folder / "tokens.toml"
    path.write_text(
        "".join(
            f'[[token]]\nname = "{name}"\nsha256 = "{digest_of(secret).hex()}"\n'
            f"scopes = {json.dumps(scopes)}\n"
            for name, (secret, scopes) in _SCOPES.items()
        )
    )
    return path


@contextlib.asynccontextmanager
async def administered(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """Run a server that loads from `folder`, and takes the tokens ADMIN and APP."""
    options = {"variants_dir": folder, "tokens_file": tokens_file(folder.parent)}
    async with serving(**options | settings) as server:
        yield server


@contextlib.asynccontextmanager
async def administrator(folder: Path, **settings: Any) -> AsyncIterator[Administrator]:
    """Run such a server, with a client that changes its variants."""
    async with administered(folder, **settings) as server, connected(server) as channel:
        yield Administrator(server, channel)


@contextlib.contextmanager
def builds_paused(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Pause builds of engines until the event is set; it is set at the end in any case."""
    build_engine, opened = getattr(loader, "build_engine"), threading.Event()  # noqa: B009

    def paused(*arguments: Any) -> Any:
        opened.wait(60)
        return build_engine(*arguments)

    monkeypatch.setattr(loader, "build_engine", paused)
    try:
        yield opened
    finally:
        opened.set()


@contextlib.contextmanager
def refused(code: str, text: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as failed:
        yield
    assert failed.value.code().name == code, failed.value
    assert text in (failed.value.details() or "")
