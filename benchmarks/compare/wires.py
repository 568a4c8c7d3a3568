"""Requests and answers as the peers expect them: gRPC and HTTP bodies, made beforehand."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import NamedTuple

from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from resnet50.v1 import image_pb2, inference_pb2


class Answer(NamedTuple):
    """The most probable categories of an image, and their probabilities."""

    indices: list[int]
    probabilities: list[float]


class Wire(NamedTuple):
    """A way to ask.

    Attributes:
        path: gRPC method, or path of the URL.
        encode: Returns the request of a JPEG.
        decode: Returns the answer of a response.
        headers: Of HTTP, by the JPEG; None for gRPC.
    """

    path: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], Answer]
    headers: Callable[[bytes], dict[str, str]] | None = None


def _classify_request(jpeg: bytes) -> bytes:
    image = image_pb2.Image(encoded=jpeg)
    return inference_pb2.ClassifyRequest(image=image).SerializeToString()


def _classify_response(reply: bytes) -> Answer:
    found = inference_pb2.ClassifyResponse.FromString(reply).classification.categories
    return Answer([one.index for one in found], [one.probability for one in found])


def _json(reply: bytes) -> Answer:
    fields = json.loads(reply)
    return Answer(fields["indices"], fields["probabilities"])


def _base64(jpeg: bytes) -> bytes:
    return json.dumps({"image": base64.b64encode(jpeg).decode()}).encode()


def _base64_list(jpeg: bytes) -> bytes:
    return json.dumps({"images": [base64.b64encode(jpeg).decode()]}).encode()


def _json_list(reply: bytes) -> Answer:
    (fields,) = json.loads(reply)
    return Answer(fields["indices"], fields["probabilities"])


def _wrapped(jpeg: bytes) -> bytes:
    return BytesValue(value=jpeg).SerializeToString()


def _wrapped_json(reply: bytes) -> Answer:
    return _json(StringValue.FromString(reply).value.encode())


def _triton_header(jpeg: bytes) -> bytes:
    described = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(jpeg) + 4},
    }
    return json.dumps({"inputs": [described]}).encode()


def _triton_request(jpeg: bytes) -> bytes:
    return _triton_header(jpeg) + struct.pack("<I", len(jpeg)) + jpeg


def _triton_response(reply: bytes) -> Answer:
    outputs = {one["name"]: one["data"] for one in json.loads(reply)["outputs"]}
    return Answer(outputs["indices"], outputs["probabilities"])


JSON = {"Content-Type": "application/json"}
WIRES = {
    "resnet50": Wire(
        "/resnet50.v1.InferenceService/Classify", _classify_request, _classify_response
    ),
    "grpc": Wire("/peer.Classifier/Classify", bytes, _json),
    "body": Wire("/inference", bytes, _json, lambda _: {"Content-Type": "image/jpeg"}),
    "wrapped": Wire("/peer.Classifier/Classify", _wrapped, _wrapped_json),
    "base64": Wire("/predict", _base64, _json, lambda _: JSON),
    "base64-list": Wire("/predict", _base64_list, _json_list, lambda _: JSON),
    "triton": Wire(
        "/v2/models/classifier/infer",
        _triton_request,
        _triton_response,
        lambda jpeg: {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(_triton_header(jpeg))),
        },
    ),
}
