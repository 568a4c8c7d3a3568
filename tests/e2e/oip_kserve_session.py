"""Calls of KServe's own client (kserve), run in an environment of its own by `make oip`.

Imports nothing of this project. Prints a line of JSON for each call: its name, and how it went.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Awaitable
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from PIL import Image

MODEL = "resnet50"


def pixels() -> Any:
    """Return a small picture, uint8 [1, 12, 16, 3]."""
    return np.arange(12 * 16 * 3, dtype=np.uint8).reshape(1, 12, 16, 3)


def png() -> bytes:
    """Return the picture as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels()[0]).save(file, "PNG")
    return file.getvalue()


def request(values: Any, datatype: str, *, binary: bool, model: str = MODEL) -> InferRequest:
    """Return a request with one tensor."""
    tensor = InferInput("IMAGE", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model, [tensor])


async def report(call: str, made: Awaitable[Any]) -> None:
    """Await a call, and print how it went."""
    try:
        detail, outcome = await made, "works"
    except grpc.RpcError as error:
        detail, outcome = error.details(), f"refused: {error.code()}"
    print(json.dumps({"call": call, "outcome": outcome, "detail": str(detail)}), flush=True)


async def main(address: str) -> None:
    """Make the calls."""
    client = InferenceGRPCClient(address)
    files = np.array([[png()]], dtype=np.object_)
    crop = np.zeros((1, 3, 224, 224), np.float32)  # the mean is no whole number of a pixel
    await report("is_server_live", client.is_server_live())
    await report("is_server_ready", client.is_server_ready())
    await report("is_model_ready", client.is_model_ready(MODEL))

    async def shapes(wanted: InferRequest) -> str:
        response = await client.infer(wanted)
        return ", ".join(f"{one.name} {list(one.as_numpy().shape)}" for one in response.outputs)

    await report("infer BYTES, raw", shapes(request(files, "BYTES", binary=True)))
    # `set_data_from_numpy` takes texts only.
    typed = InferRequest(MODEL, [InferInput("IMAGE", [1, 1], "BYTES", data=[png()])])
    await report("infer BYTES, typed", shapes(typed))
    await report("infer UINT8, raw", shapes(request(pixels(), "UINT8", binary=True)))
    await report("infer UINT8, typed", shapes(request(pixels(), "UINT8", binary=False)))
    await report("infer FP32, not of pixels", shapes(request(crop, "FP32", binary=False)))
    unknown = request(files, "BYTES", binary=True, model="pets")
    await report("infer, unknown model", shapes(unknown))
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
