"""gRPC stubs of one channel, blocking or asyncio."""

from __future__ import annotations

from typing import Any

from resnet50.v1 import inference_pb2_grpc, variant_pb2_grpc

from . import _health


class Stubs:
    """gRPC stubs of a channel.

    Args:
        channel: A `grpc.Channel` or a `grpc.aio.Channel`; the methods are of its kind.

    Attributes:
        channel: The channel.
        inference: Methods of InferenceService.
        variants: Methods of VariantService.
        check: Health's Check: takes a service's name, returns its status as text.
    """

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.variants = variant_pb2_grpc.VariantServiceStub(channel)
        self.check = channel.unary_unary(_health.CHECK, _health.check_request, _health.status_of)
