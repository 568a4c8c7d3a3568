"""Bare grpc.aio servers with the server's messages, which it is measured against.

echo   answers every request with the same message
floor  takes each image out of its message, crops it, and builds its answer, on uvloop: the least
       that a server in Python does with an image, without limits, deadlines, batches or threads

Used by `benchmarks.overhead` and `benchmarks.bulk`, which start them by python -m benchmarks.echo.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from benchmarks.process import listening
from resnet50.v1 import image_pb2, inference_pb2, result_pb2

SERVICE = "resnet50.v1.InferenceService"
CROP = 224


def fill_classification(message: Any) -> None:
    """Write into a message what the null engine's answer looks like."""
    add = message.classification.categories.add
    for index in range(5):
        add(index=index, label="great white shark", probability=0.1)


def fill_timing(message: Any) -> None:
    """Write the times of an image into a message."""
    timing = message.timing
    timing.decode_us, timing.queue_us, timing.compute_us, timing.total_us = 10, 200, 10, 500
    timing.batch_size = 8


def variant() -> result_pb2.VariantRef:
    """Return a variant with a digest as long as the server's."""
    return result_pb2.VariantRef(name="IMAGENET1K_V2", digest="0" * 64)


class Echo:
    """Answers with messages that were made before."""

    def __init__(self) -> None:
        self._response = inference_pb2.ClassifyResponse(variant=variant())
        self._result = inference_pb2.ClassifyBatchResult()
        for message in (self._response, self._result):
            fill_classification(message)
            fill_timing(message)

    async def classify(self, request, context):
        """Answer a call about one image."""
        return self._response

    async def classify_stream(self, requests, context):
        """Answer each frame."""
        response = self._response
        async for request in requests:
            if request.WhichOneof("part") == "frame":
                yield inference_pb2.ClassifyStreamResponse(
                    frame_id=request.frame.frame_id,
                    classification=response.classification,
                    variant=response.variant,
                    timing=response.timing,
                )

    async def classify_batch(self, request, context):
        """Answer a call about several images."""
        return inference_pb2.ClassifyBatchResponse(
            results=[self._result for _ in request.images], variant=self._response.variant
        )


class Floor:
    """Takes images out of their messages and builds an answer to each."""

    def __init__(self) -> None:
        self._variant = variant()

    async def classify(self, request, context):
        """Answer a call about one image."""
        return self._answered(inference_pb2.ClassifyResponse(variant=self._variant), request.image)

    async def classify_stream(self, requests, context):
        """Answer each frame."""
        async for request in requests:
            if request.WhichOneof("part") == "frame":
                frame = request.frame
                response = inference_pb2.ClassifyStreamResponse(
                    frame_id=frame.frame_id, variant=self._variant
                )
                yield self._answered(response, frame.image)

    async def classify_batch(self, request, context):
        """Answer a call about several images."""
        response = inference_pb2.ClassifyBatchResponse(variant=self._variant)
        for image in request.images:
            self._answered(response.results.add(), image)
        return response

    def _answered(self, message: Any, image: image_pb2.Image) -> Any:
        raw = image.raw
        shape = (raw.height, raw.width, 3)
        edge = (raw.height - CROP) // 2
        pixels = np.frombuffer(raw.pixels, dtype=np.uint8).reshape(shape)
        assert pixels[edge : edge + CROP, edge : edge + CROP].shape == (CROP, CROP, 3)
        fill_classification(message)
        fill_timing(message)
        return message


KINDS: dict[str, type[Echo] | type[Floor]] = {"echo": Echo, "floor": Floor}


async def serve(kind: str, options: list[tuple[str, int]]) -> None:
    """Serve until the process is stopped; print the address."""
    servicer = KINDS[kind]()
    handlers: dict[str, Any] = {
        "Classify": grpc.unary_unary_rpc_method_handler(
            servicer.classify,
            inference_pb2.ClassifyRequest.FromString,
            inference_pb2.ClassifyResponse.SerializeToString,
        ),
        "ClassifyStream": grpc.stream_stream_rpc_method_handler(
            servicer.classify_stream,
            inference_pb2.ClassifyStreamRequest.FromString,
            inference_pb2.ClassifyStreamResponse.SerializeToString,
        ),
        "ClassifyBatch": grpc.unary_unary_rpc_method_handler(
            servicer.classify_batch,
            inference_pb2.ClassifyBatchRequest.FromString,
            inference_pb2.ClassifyBatchResponse.SerializeToString,
        ),
    }
    bare = grpc.aio.server(options=options)
    bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await bare.wait_for_termination()


@contextmanager
def echo_server(kind: str = "echo") -> Iterator[tuple[str, int]]:
    """Run one with the server's own gRPC options; give its address and process id."""
    from resnet50_server.api.listen import server_options
    from resnet50_server.settings import Settings

    options = json.dumps(server_options(Settings(variants=["IMAGENET1K_V2"])))
    command = [sys.executable, "-m", "benchmarks.echo", kind, options]
    with listening(command) as address_and_pid:
        yield address_and_pid


def main() -> None:
    """Serve one of `KINDS`, with gRPC's options as JSON."""
    kind, options = sys.argv[1], [tuple(option) for option in json.loads(sys.argv[2])]
    serving = serve(kind, options)
    if kind == "echo":
        asyncio.run(serving)
    else:
        import uvloop  # as the server has it

        uvloop.run(serving)


if __name__ == "__main__":
    main()
