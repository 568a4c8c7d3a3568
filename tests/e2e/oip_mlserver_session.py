"""Requests of MLServer's codecs over gRPC, run in an environment of its own by `make oip`.

Imports nothing of this project. Prints a line of JSON for each call: its name, and how it went.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest, RequestInput
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


def report(call: str, make: Callable[[], Any]) -> None:
    """Make a call, and print how it went."""
    try:
        detail, outcome = make(), "works"
    except grpc.RpcError as error:
        detail, outcome = error.details(), f"refused: {error.code()}"
    print(json.dumps({"call": call, "outcome": outcome, "detail": str(detail)}), flush=True)


def main(address: str) -> None:
    """Make the calls."""
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)

        def infer(tensor: RequestInput, *, raw: bool = False) -> str:
            request = InferenceRequest(inputs=[tensor])
            message = ModelInferRequestConverter.from_types(request, MODEL, use_raw=raw)
            response = ModelInferResponseConverter.to_types(stub.ModelInfer(message))
            arrays = {one.name: NumpyCodec.decode_output(one) for one in response.outputs}
            return ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())

        def files() -> RequestInput:
            return RequestInput(name="IMAGE", datatype="BYTES", shape=[1], data=[png()])

        crop = np.zeros((1, 3, 224, 224), np.float32)  # the mean is no whole number of a pixel
        report("ServerLive", lambda: stub.ServerLive(messages.ServerLiveRequest()))
        report("ServerReady", lambda: stub.ServerReady(messages.ServerReadyRequest()))
        report("ModelReady", lambda: stub.ModelReady(messages.ModelReadyRequest(name=MODEL)))
        metadata = messages.ModelMetadataRequest(name=MODEL)
        report("ModelMetadata", lambda: stub.ModelMetadata(metadata))
        report("infer BYTES, typed", lambda: infer(files()))
        report("infer BYTES, raw", lambda: infer(files(), raw=True))
        picture = NumpyCodec.encode_input("IMAGE", pixels())
        report("NumpyCodec UINT8, typed", lambda: infer(picture))
        picture = NumpyCodec.encode_input("IMAGE", pixels())
        report("NumpyCodec UINT8, raw", lambda: infer(picture, raw=True))
        tensor = NumpyCodec.encode_input("IMAGE", crop)
        report("NumpyCodec FP32, not of pixels", lambda: infer(tensor))
        encoded = Base64Codec.encode_input("IMAGE", [png()])
        report("Base64Codec", lambda: infer(encoded))


if __name__ == "__main__":
    main(sys.argv[1])
