"""An RPC as the services see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from resnet50_server.context import Permit, RequestContext

GrpcContext: TypeAlias = grpc.aio.ServicerContext[Any, Any]
# Returned by a context's `read` after the last message.
EOF = grpc.aio.EOF


@dataclass(eq=False, slots=True)
class Call(RequestContext):
    """An RPC in progress, with what only the API needs of it.

    Attributes:
        grpc: gRPC's context.
        permit: From admission control, if the RPC is about a single image.
    """

    grpc: Any = None
    permit: Permit | None = None
