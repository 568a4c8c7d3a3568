"""A server that fails with the codes that a test gives."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator
from typing import Any

import grpc

from resnet50.v1 import inference_pb2, inference_pb2_grpc, result_pb2


class ScriptedServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Fails with the codes it was given, one a call, then answers."""

    def __init__(self, *codes: grpc.StatusCode) -> None:
        self.codes = list(codes)
        self.calls = 0

    def Classify(self, request: Any, context: Any) -> Any:
        self.calls += 1
        if self.codes:
            context.abort(self.codes.pop(0), "scripted")
        return inference_pb2.ClassifyResponse(classification=result_pb2.Classification())


@contextlib.contextmanager
def scripted(*codes: grpc.StatusCode) -> Iterator[tuple[str, ScriptedServicer]]:
    """Run a server; yield its address and its servicer."""
    servicer = ScriptedServicer(*codes)
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(4),
        options=[("grpc.max_receive_message_length", -1)],
    )
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait()
