"""Registers the methods of the Open Inference Protocol with gRPC."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from resnet50.oip.messages import SERVICE, message_class

from ..registration import GuardedServer
from .service import OipServicer

_HEALTH = ("ServerLive", "ServerReady", "ModelReady")
_INFERENCE = ("ModelInfer", "ModelStreamInfer")
_LOADING = ("RepositoryModelLoad", "RepositoryModelUnload")
# The methods by what they are for, as each kind has limits and a scope of its own.
METHOD_GROUPS = {
    "health": _HEALTH,
    "inference": _INFERENCE,
    "loading": _LOADING,
    "metadata": tuple(
        method.name
        for method in SERVICE.methods
        if method.name not in (*_HEALTH, *_INFERENCE, *_LOADING)
    ),
}


def add_methods(names: Iterable[str], servicer: OipServicer, server: GuardedServer) -> None:
    """Add methods of a servicer to a server.

    Args:
        names: Their names.
        servicer: The servicer.
        server: The server, behind its guard.
    """
    handlers = {}
    for name in names:
        method = SERVICE.methods_by_name[name]
        kind = (
            grpc.stream_stream_rpc_method_handler
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        handlers[name] = kind(
            getattr(servicer, name),
            request_deserializer=message_class(method.input_type.name).FromString,
            response_serializer=message_class(method.output_type.name).SerializeToString,
        )
    server.add_methods(SERVICE.full_name, handlers)
