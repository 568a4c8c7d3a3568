"""Serialized requests, prepared before the run so that generating load is cheap."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_client._frames import DELIVERIES
from resnet50_client._unary import CHUNK_BYTES

from .plan import Plan


def message_kind(plan: Plan, suffix: str) -> Any:
    """Return the class of a plan's messages, e.g. ClassifyUploadRequest for "UploadRequest"."""
    return getattr(inference_pb2, plan.operation.capitalize() + suffix)


def unary(plan: Plan, images: Sequence[image_pb2.Image]) -> list[bytes]:
    """Return the request for each image."""
    request = message_kind(plan, "Request")
    return [request(options=_options(plan), image=one).SerializeToString() for one in images]


def uploads(plan: Plan, images: Sequence[image_pb2.Image]) -> list[list[bytes]]:
    """Return the requests for each image: options, then chunks, as the SDK sends them."""
    request, options = message_kind(plan, "UploadRequest"), message_kind(plan, "UploadOptions")
    serialized = []
    for image in images:
        content = image.encoded
        first = options(options=_options(plan), sha256=hashlib.sha256(content).digest())
        parts = [request(options=first)]
        for at in range(0, len(content), CHUNK_BYTES):
            parts.append(request(chunk=content[at : at + CHUNK_BYTES]))
        serialized.append([part.SerializeToString() for part in parts])
    return serialized


def stream_config(plan: Plan) -> bytes:
    """Return the first request of a stream."""
    in_flight = 0  # the server's choice
    if plan.load.concurrency is not None and plan.delivery == "ordered":
        in_flight = plan.load.concurrency
    config = message_kind(plan, "StreamConfig")(
        options=_options(plan), delivery=DELIVERIES[plan.delivery], max_in_flight=in_flight
    )
    serialized: bytes = message_kind(plan, "StreamRequest")(config=config).SerializeToString()
    return serialized


def frames(plan: Plan, images: Sequence[image_pb2.Image]) -> list[Callable[[int], bytes]]:
    """Return a function per image that serializes a frame with a given number.

    Protobuf merges concatenated messages, so a frame is a few bytes with its number, followed by
    bytes that were serialized once.
    """
    request = message_kind(plan, "StreamRequest")

    def maker(image: image_pb2.Image) -> Callable[[int], bytes]:
        rest = request(frame=inference_pb2.Frame(image=image)).SerializeToString()

        def make(frame_id: int) -> bytes:
            number = request(frame=inference_pb2.Frame(frame_id=frame_id))
            serialized: bytes = number.SerializeToString() + rest
            return serialized

        return make

    return [maker(one) for one in images]


def _options(plan: Plan) -> Any:
    return message_kind(plan, "Options")(variant=plan.variant)
