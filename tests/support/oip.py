"""Calls of the Open Inference Protocol, with messages from the server's own descriptors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from resnet50.oip.messages import SERVICE, message_class
from tests.support.serving import connected, serving

ModelInferRequest = message_class("ModelInferRequest")


def rpc(channel: grpc.aio.Channel, name: str) -> Any:
    """Return a method of a channel, by its name."""
    method = SERVICE.methods_by_name[name]
    kind = channel.stream_stream if method.server_streaming else channel.unary_unary
    return kind(
        f"/{SERVICE.full_name}/{name}",
        request_serializer=message_class(method.input_type.name).SerializeToString,
        response_deserializer=message_class(method.output_type.name).FromString,
    )


def request_of(method: str, /, **fields: Any) -> Any:
    """Return the request of a method."""
    return message_class(SERVICE.methods_by_name[method].input_type.name)(**fields)


def prefixed(*elements: bytes) -> bytes:
    """Return the raw form of a BYTES tensor."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def infer_request(
    datatype: str, shape: list[int], raw: bytes | None, *outputs: str, **fields: Any
) -> Any:
    """Return a request with one input tensor."""
    request = ModelInferRequest(**{"model_name": "resnet50"} | fields)
    request.inputs.add(name="IMAGE", datatype=datatype, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    for output in outputs:
        request.outputs.add(name=output)
    return request


def files_request(*files: bytes, outputs: tuple[str, ...] = (), **fields: Any) -> Any:
    """Return a request with image files."""
    return infer_request("BYTES", [len(files), 1], prefixed(*files), *outputs, **fields)


def tensors(response: Any) -> dict[str, NDArray[Any]]:
    """Return the tensors of a response by their names; those of BYTES as lists of texts."""
    found: dict[str, Any] = {}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "FP32":
            found[output.name] = np.frombuffer(content, "<f4").reshape(output.shape)
        else:
            found[output.name] = np.array(split(content)).reshape(output.shape)
    return found


def split(content: bytes) -> list[str]:
    """Return the elements of a raw BYTES tensor."""
    elements, position = [], 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "little")
        elements.append(content[position + 4 : position + 4 + length].decode())
        position += 4 + length
    return elements


@contextlib.asynccontextmanager
async def oip(**settings: Any) -> AsyncIterator[tuple[Any, grpc.aio.Channel]]:
    """Run a server with the protocol; yield it, and a channel."""
    async with serving(oip=True, **settings) as server, connected(server) as channel:
        yield server, channel


async def infer(channel: grpc.aio.Channel, request: Any, **options: Any) -> Any:
    """Call ModelInfer."""
    return await rpc(channel, "ModelInfer")(request, **options)
