"""A server that answers every call with a given text in each place that holds text.

It computes nothing: what it is for is what clients do with what they are told.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import grpc
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resnet50.v1 import inference_pb2, inference_pb2_grpc, variant_pb2, variant_pb2_grpc

_NUMBERS = {
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
    FieldDescriptor.CPPTYPE_FLOAT: 0.5,
}
_SERVED = {"state": variant_pb2.VARIANT_STATE_READY, "resize": 232, "crop": 224, "dimension": 2048}


def filled(message: Message, text: str) -> Any:
    """Set every field of a message: texts to `text`, numbers and lists to something plausible."""
    for field in message.DESCRIPTOR.fields:
        count = {"mean": 3, "std": 3}.get(field.name, 1)
        if field.containing_oneof is not None and field.name in ("dropped", "error", "acc_at_5"):
            continue
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            one = getattr(message, field.name)
            filled(one.add() if field.is_repeated else one, text)
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            value: Any = text
        elif field.type == FieldDescriptor.TYPE_BYTES:
            value = np.ones(2048, "<f4").tobytes()
        else:
            value = _SERVED.get(field.name, _NUMBERS.get(field.cpp_type, 1))
        if field.is_repeated:
            getattr(message, field.name).extend([value] * count)
        else:
            setattr(message, field.name, value)
    return message


class Puppet(grpc.ServerInterceptor):
    """Says what it is told to; has seen what came.

    Args:
        text: Text of all fields in its answers.
        fails: With which code every call ends, `text` being the message; None: calls are answered.
        frames: Outcome of the frames of streams: "answered", "failed" with `text`, "swapped"
            (two by two), "ended" (the stream ends with OK after its first answer), "closed" (it
            does so before it) or "ignored".
        images: Outcome of the other calls about images: "answered", "ignored" or "closed"
            (UNAVAILABLE).

    Attributes:
        metadata: Of each call, by its method's path.
    """

    def __init__(
        self,
        text: str,
        fails: grpc.StatusCode | None = None,
        frames: Literal["answered", "failed", "swapped", "ended", "closed", "ignored"] = "answered",
        images: Literal["answered", "ignored", "closed"] = "answered",
    ) -> None:
        self.text = text
        self.fails = fails
        self.frames = frames
        self.images = images
        self.metadata: list[tuple[str, dict[str, Any]]] = []

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        self.metadata.append((details.method, dict(details.invocation_metadata)))
        return continuation(details)

    def answer(self, reply: type[Message]) -> Any:
        """Return the behaviour of a method that gives one reply."""

        def behave(_: object, context: grpc.ServicerContext) -> Any:
            if self.fails is not None:
                context.abort(self.fails, self.text)
            if self.images == "ignored" and reply.DESCRIPTOR.file is inference_pb2.DESCRIPTOR:
                ended = threading.Event()
                if context.add_callback(ended.set):
                    ended.wait(60)
            if self.images == "closed" and reply.DESCRIPTOR.file is inference_pb2.DESCRIPTOR:
                context.abort(grpc.StatusCode.UNAVAILABLE, self.text)
            return filled(reply(), self.text)

        return behave

    def answer_frames(self, reply: type[Message]) -> Any:
        """Return the behaviour of a method that answers each frame."""

        def behave(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            if self.fails is not None:
                context.abort(self.fails, self.text)
            ids = (one.frame.frame_id for one in requests if one.HasField("frame"))
            for frame_id in ids:
                if self.frames == "closed":
                    return
                if self.frames == "ignored":
                    continue
                if self.frames == "swapped":
                    yield self._answer(reply, next(ids))
                yield self._answer(reply, frame_id)
                if self.frames == "ended":
                    return

        return behave

    def _answer(self, reply: type[Message], frame_id: int) -> Any:
        one: Any = filled(reply(), self.text)
        one.frame_id = frame_id
        if self.frames == "failed":
            one.error.code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
            one.error.message = self.text
        return one


def _health(puppet: Puppet) -> Any:
    def check(_: object, context: grpc.ServicerContext) -> health_pb2.HealthCheckResponse:
        if puppet.fails is not None:
            context.abort(puppet.fails, puppet.text)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    return check


def _served(servicer: Any, puppet: Puppet, module: Any) -> Any:
    (service,) = module.DESCRIPTOR.services_by_name.values()
    for method in service.methods:
        reply = getattr(module, method.output_type.name)
        answers = puppet.answer_frames if method.server_streaming else puppet.answer
        setattr(servicer, method.name, answers(reply))
    return servicer


@contextlib.contextmanager
def puppet_server(
    puppet: Puppet, credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """Serve; give the address."""
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[puppet])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(
        _served(inference_pb2_grpc.InferenceServiceServicer(), puppet, inference_pb2), server
    )
    variant_pb2_grpc.add_VariantServiceServicer_to_server(
        _served(variant_pb2_grpc.VariantServiceServicer(), puppet, variant_pb2), server
    )
    health = health_pb2_grpc.HealthServicer()
    health.Check = _health(puppet)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
