"""Bad requests of the Open Inference Protocol are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.administering import refused
from tests.support.oip import files_request, infer, infer_request, oip, request_of, rpc
from tests.support.pictures import encode, picture

PNG, OTHER = encode(picture()), encode(picture(40, 30))
BROKEN = PNG[: len(PNG) // 2]


def with_input(**fields: Any) -> Any:
    request = files_request(PNG)
    for name, value in fields.items():
        if name == "shape":
            request.inputs[0].shape[:] = value
        else:
            setattr(request.inputs[0], name, value)
    return request


def with_parameter(name: str, **value: Any) -> Any:
    request = files_request(PNG)
    ((kind, content),) = value.items()
    setattr(request.parameters[name], kind, content)
    return request


def shared_memory(where: str) -> Any:
    request = files_request(PNG, outputs=("EMBEDDING",))
    getattr(request, where)[0].parameters["shared_memory_region"].string_param = "r"
    return request


def labels_of(output: str, count: int, images: int = 1) -> Any:
    request = files_request(*[PNG] * images, outputs=(output,))
    request.outputs[0].parameters["classification"].int64_param = count
    return request


def both_contents() -> Any:
    request = files_request(PNG)
    request.inputs[0].contents.bytes_contents.append(PNG)
    return request


def number_above_255() -> Any:
    request = infer_request("UINT8", [1, 1, 1, 3], None)
    request.inputs[0].contents.uint_contents.append(b"\x01\x80\x02\x03")
    return request


def two_inputs() -> Any:
    request = files_request(PNG)
    request.inputs.add(name="B", datatype="BYTES", shape=[1])
    return request


NAN = np.full((1, 3, 224, 224), np.nan, np.float32).tobytes()
HALF = (np.full((1, 3, 224, 224), 0.5, np.float32) / np.float32(0.224)).tobytes()
BAD = {
    "no input": (infer_request("BYTES", [1], b""), "raw_input_contents[0]"),
    "two inputs": (two_inputs(), "inputs: has 2 tensors, must have one"),
    "datatype": (with_input(datatype="INT64"), "inputs[0].datatype: is 'INT64'"),
    "shape of files": (with_input(shape=[1, 2]), "inputs[0].shape: is [1, 2], must be [N]"),
    "no images": (with_input(shape=[0]), "inputs[0].shape: has 0 images"),
    "negative": (with_input(shape=[-1, 1]), "inputs[0].shape: has -1 images"),
    "too many images": (files_request(*[PNG] * 129), "has 129 images, a call may have 1 to 128"),
    "fewer files": (with_input(shape=[2]), "ends before element 1"),
    "more files": (
        infer_request("BYTES", [1], files_request(PNG, PNG).raw_input_contents[0]),
        "bytes behind its last element",
    ),
    "cut file": (
        infer_request("BYTES", [1], b"\xff\xff\xff\xffab"),
        "2 bytes left for element 0, whose length is 4294967295",
    ),
    "empty file": (files_request(PNG, b""), "inputs[0][1]: has 0 bytes"),
    "broken file": (files_request(PNG, OTHER, BROKEN), "inputs[0][2]: "),
    "one broken file": (files_request(BROKEN), "inputs[0][0]: "),
    "no contents": (infer_request("BYTES", [1], None), "raw_input_contents: has 0 elements"),
    "two contents": (both_contents(), "raw_input_contents: is set as well as"),
    "channels": (infer_request("UINT8", [1, 4, 4, 4], b"0" * 64), "must be [N, H, W, 3]"),
    "pixels": (
        infer_request("UINT8", [1, 4, 4, 3], b"0" * 47),
        "has 47 bytes of data, the shape [1, 4, 4, 3] of UINT8 needs 48",
    ),
    "side": (infer_request("UINT8", [1, 1, 70_000, 3], b"0" * 210_000), "inputs[0][0]: is 70000"),
    "above 255": (number_above_255(), "has a number above 255"),
    "other size": (infer_request("FP32", [1, 3, 8, 8], b"0" * 768), "input is [N, 3, 224, 224]"),
    "not a number": (infer_request("FP32", [1, 3, 224, 224], NAN), "is pixel value nan"),
    "off the grid": (
        infer_request("FP32", [1, 3, 224, 224], HALF),
        "no whole number: the tensor was not made by the variant's transform",
    ),
    "output": (files_request(PNG, outputs=("LOGITS",)), "outputs[0].name: is 'LOGITS'"),
    "output twice": (files_request(PNG, outputs=("EMBEDDING",) * 2), "EMBEDDING a second time"),
    "labels of vectors": (labels_of("EMBEDDING", 3), "set it for PROBABILITIES only"),
    "no labels": (labels_of("PROBABILITIES", 0), "is 0, must be 1 to 1000"),
    "too many labels": (labels_of("PROBABILITIES", 1000, 21), "21000 labels"),
    "shared input": (shared_memory("inputs"), "inputs[0].parameters.shared_memory_region"),
    "shared output": (shared_memory("outputs"), "outputs[0].parameters.shared_memory_region"),
    "version": (files_request(PNG, model_version="2"), "model_version: is '2'"),
    "no model": (files_request(PNG, model_name=""), "model_name: is empty"),
    "timeout": (with_parameter("timeout", int64_param=-1), "parameters.timeout: is -1"),
    "priority": (with_parameter("priority", string_param="high"), "parameters.priority: is 'high'"),
}


@pytest.fixture(scope="module")
def bad_answers() -> dict[str, tuple[str, str]]:
    """Code and text of each bad request, all from one server, which answers a good one after."""

    async def ask() -> dict[str, tuple[str, str]]:
        found = {}
        async with oip(engine="timed", timed_alpha_ms=0.0, timed_beta_ms=0.0) as (_, channel):
            for name, (request, _) in BAD.items():
                try:
                    await infer(channel, request)
                except grpc.aio.AioRpcError as error:
                    found[name] = error.code().name, error.details() or ""
            assert (await infer(channel, files_request(PNG))).outputs
        return found

    return asyncio.run(ask())


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_refused_with_field_and_limit(name, bad_answers):
    code, text = bad_answers[name]
    assert code == "INVALID_ARGUMENT"
    assert BAD[name][1] in text


async def test_as_many_labels_as_a_response_may_have_are_sent():
    async with oip() as (_, channel):
        response = await infer(channel, labels_of("PROBABILITIES", 1000, images=20))
    assert list(response.outputs[0].shape) == [20, 1000]


async def test_unknown_model_is_not_found():
    async with oip() as (_, channel):
        with refused("NOT_FOUND", "model_name"):
            await infer(channel, files_request(PNG, model_name="pets"))
        with refused("NOT_FOUND", "name"):
            await rpc(channel, "ModelReady")(request_of("ModelReady", name="pets"))
