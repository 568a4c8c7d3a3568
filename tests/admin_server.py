"""Servers whose variants are changed while they serve, and who changes them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from pictures import encode, picture
from serving import connected, serving

from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from resnet50_server.tokens import hash_of

IMAGE = image_pb2.Image(encoded=encode(picture()))
READY, LOADING = variant_pb2.VARIANT_STATE_READY, variant_pb2.VARIANT_STATE_LOADING
DRAINING, FAILED = variant_pb2.VARIANT_STATE_DRAINING, variant_pb2.VARIANT_STATE_FAILED


class Administrator:
    """Calls a server with a token that may change variants."""

    def __init__(self, server, channel: grpc.aio.Channel, secrets: dict[str, str]) -> None:
        self.server = server
        self.channel = channel
        self.variants = variant_pb2_grpc.VariantServiceStub(channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self._secrets = secrets

    def token(self, name: str = "admin"):
        return (("authorization", f"Bearer {self._secrets[name]}"),)

    async def load(self, name: str, token: str = "admin") -> variant_pb2.Variant:
        request = variant_pb2.LoadVariantRequest(name=name)
        return (await self.variants.LoadVariant(request, metadata=self.token(token))).variant

    async def unload(self, name: str, token: str = "admin") -> variant_pb2.Variant:
        request = variant_pb2.UnloadVariantRequest(name=name)
        return (await self.variants.UnloadVariant(request, metadata=self.token(token))).variant

    async def states(self) -> dict[str, int]:
        request = variant_pb2.ListVariantsRequest()
        listed = await self.variants.ListVariants(request, metadata=self.token())
        return {one.name: one.state for one in listed.variants}

    def classify(self, variant: str):
        options = inference_pb2.ClassifyOptions(variant=variant, top_k=1)
        request = inference_pb2.ClassifyRequest(options=options, image=IMAGE)
        return self.inference.Classify(request, metadata=self.token())


def describe(directory: Path, categories: Sequence[str] = ("a", "b")) -> None:
    directory.mkdir(parents=True)
    transform = {"resize": 232, "crop": 224, "mean": [0.5] * 3, "std": [0.25] * 3}
    content = {"categories": categories, "transform": transform}
    (directory / "variant.json").write_text(json.dumps(content))


@contextlib.asynccontextmanager
async def administered(folder: Path | None, tmp_path: Path, **settings):
    path = tmp_path / "tokens.toml"
    secrets = {"admin": "a" * 43, "infer": "i" * 43}
    scopes = {"admin": ["admin", "infer"], "infer": ["infer"]}
    path.write_text(
        "".join(
            f'[[token]]\nname = "{name}"\nsha256 = "{hash_of(secret).hex()}"\n'
            f"scopes = {json.dumps(scopes[name])}\n"
            for name, secret in secrets.items()
        )
    )
    options = {"tokens_file": path} | ({"variants_dir": folder} if folder else {})
    async with serving(**options, **settings) as server, connected(server) as channel:
        yield Administrator(server, channel, secrets)


@contextlib.contextmanager
def refused(code: str, text: str):
    with pytest.raises(grpc.RpcError) as failed:
        yield
    assert failed.value.code().name == code, failed.value
    assert text in failed.value.details()
