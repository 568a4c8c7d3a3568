"""Calls of Triton's own clients (tritonclient), run in an environment of its own by `make oip`.

Imports nothing of this project. Prints a line of JSON for each call: its name, and how it went.
"""

from __future__ import annotations

import asyncio
import io
import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from PIL import Image
from tritonclient.utils import InferenceServerException

MODEL = "resnet50"
# Normalisation of IMAGENET1K_V2.
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def picture(width: int = 16, height: int = 12) -> Image.Image:
    """Return a small picture."""
    rows = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(rows)


def png(image: Image.Image) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def files(module: Any, *content: bytes) -> Any:
    """Return an input tensor of image files."""
    tensor = module.InferInput("IMAGE", [len(content), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(content, dtype=np.object_).reshape(-1, 1))
    return tensor


def array(values: Any, datatype: str) -> Any:
    """Return an input tensor of numbers."""
    tensor = triton.InferInput("IMAGE", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def normalized() -> Any:
    """Return the network's input of a picture, float32 [1, 3, 224, 224]."""
    pixels = np.asarray(picture(224, 224), np.float32) / np.float32(255)
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)


def report(call: str, run: Callable[[], Any]) -> None:
    """Make a call, and print how it went."""
    try:
        detail, outcome = run(), "works"
    except InferenceServerException as error:
        detail, outcome = error.message(), f"refused: {error.status()}"
    print(json.dumps({"call": call, "outcome": outcome, "detail": str(detail)}), flush=True)


def shapes(result: Any, *names: str) -> str:
    """Return the shapes of a result's tensors."""
    return ", ".join(f"{name} {list(result.as_numpy(name).shape)}" for name in names)


def stream(client: Any) -> str:
    """Send three requests, one of them broken, over one stream; return what came back."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put(error or result))
    for content in (png(picture()), b"no image", png(picture())):
        client.async_stream_infer(MODEL, [files(triton, content)])
    found = [answers.get(timeout=60) for _ in range(3)]
    client.stop_stream()
    errors = [isinstance(one, InferenceServerException) for one in found]
    assert errors == [False, True, False], found
    return f"answer, error ({found[1].message()}), answer"


def asynchronous(client: Any) -> str:
    """Make a call with a callback."""
    answers: queue.Queue[Any] = queue.Queue()
    client.async_infer(
        MODEL,
        [files(triton, png(picture()))],
        callback=lambda result, error: answers.put(error or result),
    )
    return shapes(answers.get(timeout=60), "PROBABILITIES")


def labels(client: Any) -> str:
    """Ask for the classification extension."""
    wanted = [triton.InferRequestedOutput("PROBABILITIES", class_count=2)]
    result = client.infer(MODEL, [files(triton, png(picture()))], outputs=wanted)
    return " ".join(text.decode() for text in result.as_numpy("PROBABILITIES").ravel())


def blocking(address: str) -> None:
    """Make the calls of the blocking client."""
    client = triton.InferenceServerClient(address)
    image = files(triton, png(picture()))
    both = ("PROBABILITIES", "EMBEDDING")
    report("is_server_live", client.is_server_live)
    report("is_server_ready", client.is_server_ready)
    report("is_model_ready", lambda: client.is_model_ready(MODEL, "1"))
    report("get_server_metadata", lambda: client.get_server_metadata().name)
    report("get_model_metadata", lambda: client.get_model_metadata(MODEL).inputs[0].name)
    report("get_model_config", lambda: client.get_model_config(MODEL).config.max_batch_size)
    report("infer BYTES", lambda: shapes(client.infer(MODEL, [image]), *both))
    pair = files(triton, png(picture()), png(picture(20, 20)))
    report("infer BYTES, two images", lambda: shapes(client.infer(MODEL, [pair]), *both))
    pixels = array(np.asarray(picture())[None], "UINT8")
    report("infer UINT8", lambda: shapes(client.infer(MODEL, [pixels]), *both))
    floats = array(normalized(), "FP32")
    report("infer FP32", lambda: shapes(client.infer(MODEL, [floats]), *both))
    report("infer with class_count", lambda: labels(client))
    report(
        "infer with priority, timeout, request_id",
        lambda: (
            client.infer(
                MODEL, [image], priority=2, timeout=60_000_000, request_id="mine", client_timeout=60
            )
            .get_response()
            .id
        ),
    )
    report("async_infer", lambda: asynchronous(client))
    report("async_stream_infer", lambda: stream(client))
    report("infer, unknown model", lambda: client.infer("pets", [image]))
    broken = files(triton, b"no image")
    report("infer, no image", lambda: client.infer(MODEL, [broken]))
    wrong = array(np.zeros((1, 4), np.int64), "INT64")
    report("infer, INT64", lambda: client.infer(MODEL, [wrong]))
    report("infer, sequence_id", lambda: client.infer(MODEL, [image], sequence_id=7))
    report(
        "get_inference_statistics",
        lambda: client.get_inference_statistics(MODEL).model_stats[0].inference_count > 0,
    )
    report(
        "get_model_repository_index",
        lambda: client.get_model_repository_index().models[0].state,
    )
    report("load_model, without --variants-dir", lambda: client.load_model("pets"))
    report("unload_model, without --variants-dir", lambda: client.unload_model("pets"))
    report("get_trace_settings", client.get_trace_settings)
    report("get_log_settings", client.get_log_settings)
    report("get_system_shared_memory_status", client.get_system_shared_memory_status)
    report("get_cuda_shared_memory_status", client.get_cuda_shared_memory_status)
    client.close()


async def aio(address: str) -> None:
    """Make the calls of the asyncio client that differ."""
    async with triton_aio.InferenceServerClient(address) as client:
        result = await client.infer(MODEL, [files(triton_aio, png(picture()))])
        report("aio: infer BYTES", lambda: shapes(result, "PROBABILITIES", "EMBEDDING"))

        async def requests() -> Any:
            for content in (png(picture()), b"no image"):
                yield {"model_name": MODEL, "inputs": [files(triton_aio, content)]}

        found = [error is None async for _, error in client.stream_infer(requests())]
        report("aio: stream_infer", lambda: found)


if __name__ == "__main__":
    blocking(sys.argv[1])
    asyncio.run(aio(sys.argv[1]))
