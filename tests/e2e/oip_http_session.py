"""Calls of tritonclient.http and of KServe's REST client, run in environments of their own.

Imports nothing of this project. Prints a line of JSON for each call: its name, and how it went.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

MODEL = "resnet50"
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def picture(width: int = 16, height: int = 12) -> Image.Image:
    """Return a small picture."""
    rows = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(rows)


def png() -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    picture().save(file, "PNG")
    return file.getvalue()


def normalized() -> Any:
    """Return the network's input of a picture, float32 [1, 3, 224, 224]."""
    pixels = np.asarray(picture(224, 224), np.float32) / np.float32(255)
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)


def report(call: str, run: Callable[[], Any]) -> None:
    """Make a call, and print how it went."""
    try:
        detail, outcome = run(), "works"
    except Exception as error:
        detail, outcome = error, f"refused: {getattr(error, 'status', lambda: '')() or ''}"
    print(json.dumps({"call": call, "outcome": outcome, "detail": str(detail)}), flush=True)


def triton_calls(address: str) -> None:
    """Make the calls of tritonclient.http."""
    import tritonclient.http as triton

    client = triton.InferenceServerClient(address)

    def tensor(values: Any, datatype: str, *, binary: bool = True) -> Any:
        given = triton.InferInput("IMAGE", list(values.shape), datatype)
        given.set_data_from_numpy(values, binary_data=binary)
        return given

    image = tensor(np.array([[png()]], dtype=np.object_), "BYTES")
    broken = tensor(np.array([[b"no image"]], dtype=np.object_), "BYTES")
    pixels = np.asarray(picture())[None]

    def shapes(*inputs: Any, **options: Any) -> str:
        result = client.infer(MODEL, list(inputs), **options)
        names = ("PROBABILITIES", "EMBEDDING")
        return ", ".join(f"{name} {list(result.as_numpy(name).shape)}" for name in names)

    def labels() -> str:
        wanted = [triton.InferRequestedOutput("PROBABILITIES", class_count=2)]
        return str(client.infer(MODEL, [image], outputs=wanted).as_numpy("PROBABILITIES").ravel())

    def as_json() -> str:
        wanted = [triton.InferRequestedOutput("EMBEDDING", binary_data=False)]
        result = client.infer(MODEL, [image], outputs=wanted)
        return str(list(result.as_numpy("EMBEDDING").shape))

    report("is_server_live", client.is_server_live)
    report("is_server_ready", client.is_server_ready)
    report("is_model_ready", lambda: client.is_model_ready(MODEL, "1"))
    report("get_server_metadata", lambda: client.get_server_metadata()["name"])
    report("get_model_metadata", lambda: client.get_model_metadata(MODEL)["inputs"])
    report("get_model_config", lambda: client.get_model_config(MODEL)["max_batch_size"])
    report("infer BYTES, binary", lambda: shapes(image))
    report("infer UINT8, binary", lambda: shapes(tensor(pixels, "UINT8")))
    report("infer UINT8, JSON", lambda: shapes(tensor(pixels, "UINT8", binary=False)))
    report("infer FP32, binary", lambda: shapes(tensor(normalized(), "FP32")))
    report("infer, outputs as JSON", as_json)
    report("infer with class_count", labels)
    report(
        "infer with priority, timeout, request_id",
        lambda: shapes(image, priority=2, timeout=60_000_000, request_id="mine"),
    )
    report("async_infer", lambda: client.async_infer(MODEL, [image]).get_result().get_response())
    report("infer, no image", lambda: client.infer(MODEL, [broken]))
    report("infer, unknown model", lambda: client.infer("pets", [image]))
    report(
        "infer, compressed request",
        lambda: shapes(image, request_compression_algorithm="gzip"),
    )
    report(
        "get_inference_statistics",
        lambda: client.get_inference_statistics(MODEL)["model_stats"][0]["inference_count"],
    )
    report("get_model_repository_index", client.get_model_repository_index)
    report("load_model, without --variants-dir", lambda: client.load_model("pets"))
    report("unload_model, without --variants-dir", lambda: client.unload_model("pets"))
    report("get_trace_settings", client.get_trace_settings)
    report("get_system_shared_memory_status", client.get_system_shared_memory_status)


def kserve_calls(address: str) -> None:
    """Make the calls of KServe's REST client."""
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
    from kserve.constants.constants import PredictorProtocol

    loop = asyncio.new_event_loop()  # the client keeps connections of one loop
    client = InferenceRESTClient(RESTConfig(protocol=PredictorProtocol.REST_V2.value))
    base = f"http://{address}"

    def infer(values: Any, datatype: str, *, binary: bool = True, model: str = MODEL) -> Any:
        given = InferInput("IMAGE", list(values.shape), datatype)
        given.set_data_from_numpy(values, binary_data=binary)
        request = InferRequest(model_name=model, infer_inputs=[given])
        answer = loop.run_until_complete(client.infer(base, request, model_name=model))
        return [output.name for output in answer.outputs]

    file = np.array([[png()]], dtype=np.object_)
    pixels = np.asarray(picture())[None]
    report("is_server_live", lambda: loop.run_until_complete(client.is_server_live(base)))
    report("is_server_ready", lambda: loop.run_until_complete(client.is_server_ready(base)))
    report("is_model_ready", lambda: loop.run_until_complete(client.is_model_ready(base, MODEL)))
    report("infer BYTES, binary", lambda: infer(file, "BYTES"))
    report("infer UINT8, binary", lambda: infer(pixels, "UINT8"))
    report("infer UINT8, JSON", lambda: infer(pixels, "UINT8", binary=False))
    report("infer FP32, JSON", lambda: infer(normalized(), "FP32", binary=False))
    report("infer, unknown model", lambda: infer(file, "BYTES", model="pets"))


if __name__ == "__main__":
    {"tritonclient": triton_calls, "kserve": kserve_calls}[sys.argv[1]](sys.argv[2])
