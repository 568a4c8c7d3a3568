"""The gRPC method of the application behind Ray Serve's gRPC proxy, which imports this module."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue, StringValue


def add_to_server(servicer: Any, server: Any) -> None:
    """Register the method as generated code does; Ray Serve puts its own handler behind it."""
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.Classify,
        request_deserializer=BytesValue.FromString,
        response_serializer=StringValue.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("peer.Classifier", {"Classify": handler}),)
    )
