"""An RPC as the services see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import grpc

from resnet50_server.context import Permit, RequestContext

GrpcContext: TypeAlias = grpc.aio.ServicerContext[Any, Any]
# Returned by a context's `read` after the last message.
EOF = grpc.aio.EOF


class Received(NamedTuple):
    """A message, and how long it was: protobuf serializes a message to find out.

    Attributes:
        message: Parsed.
        size: Its bytes as they arrived.
    """

    message: Any
    size: int


@dataclass(eq=False, slots=True)
class Call(RequestContext):
    """An RPC in progress, with what only the API needs of it.

    Attributes:
        grpc: gRPC's context.
        permit: From admission control, if the RPC has one response.
        message_bytes: Size of its request, if it has one message.
    """

    grpc: Any = None
    permit: Permit | None = None
    message_bytes: int = 0
