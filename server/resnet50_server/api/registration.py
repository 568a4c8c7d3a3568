"""Registers services with gRPC so that every call goes through the guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from resnet50_server.errors import InvalidRequest

from .call import Received
from .wire_format import bounded

if TYPE_CHECKING:
    from .guard import RpcGuard

# Proxies and tracing add a dozen; HPACK packs hundreds of pairs into as many bytes.
MAX_METADATA_PAIRS = 64


class GuardedServer:
    """Passed to the stubs' `add_…_to_server` instead of the server.

    Args:
        server: The server.
        guard: Wraps the handlers.
        scope: The scope that callers need; None for none.
        scopes: The same of single methods, by name.
        pass_call: See `RpcGuard.add`.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        guard: RpcGuard,
        scope: str | None,
        scopes: Mapping[str, str],
        pass_call: bool,
    ) -> None:
        self._server = server
        self._guard = guard
        self._scope = scope
        self._scopes = scopes
        self._pass_call = pass_call

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.ServiceRpcHandler]) -> None:
        """Register the methods of services behind the guard."""
        for handler in handlers:
            service = handler.service_name()
            methods = descriptor_pool.Default().FindServiceByName(service).methods
            self.add_methods(
                service,
                {
                    method.name: handler.service(_CallOf(f"/{service}/{method.name}"))
                    for method in methods
                },
            )

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Do nothing: stubs of grpcio-tools 1.65 or newer register the same methods twice."""

    def add_methods(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register methods of a service behind the guard; others may be behind another one.

        Args:
            service: Its full name.
            handlers: gRPC's handlers by the names of the methods.
        """
        guard, guarded, rejecting = self._guard, {}, {}
        for name, handler in handlers.items():
            path, scope = f"/{service}/{name}", self._scopes.get(name, self._scope)
            streams = handler.response_streaming
            # The guard or a `StreamReader` reads these, and counts their bytes.
            read = not handler.request_streaming or (streams and self._pass_call)
            parse = _safe_deserializer(handler.request_deserializer, with_size=read)
            serialize = handler.response_serializer if streams else None  # the guard does it
            wrapped = guard.wrap(name, handler, scope, pass_call=self._pass_call)
            guarded[path] = _rpc_handler(wrapped, streams, parse, serialize)
            reject = guard.reject_metadata(name)
            rejecting[path] = _rpc_handler(reject, streams, parse, serialize)
        self._server.add_generic_rpc_handlers((_ServiceHandlers(service, guarded, rejecting),))


class _CallOf(grpc.HandlerCallDetails):
    """A call of a method, to ask a service for its handler."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class UnknownMethods(grpc.GenericRpcHandler):
    """Handles the calls of methods that no service has.

    Args:
        reject: Rejects a call.
    """

    def __init__(self, reject: Callable[[Any, Any], Any]) -> None:
        self._handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            reject
        )

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler."""
        return self._handler


class _ServiceHandlers(grpc.ServiceRpcHandler):
    """The methods of a service; calls with too many metadata pairs are rejected.

    gRPC has decoded the metadata by then; any other access would decode it again.
    """

    def __init__(
        self,
        service: str,
        handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
        rejecting: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
    ) -> None:
        self._service = service
        self._handlers = handlers
        self._rejecting = rejecting

    def service_name(self) -> str:
        """Return the service's full name."""
        return self._service

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call; None if there is no such method."""
        pairs = len(handler_call_details.invocation_metadata or ())
        handlers = self._handlers if pairs <= MAX_METADATA_PAIRS else self._rejecting
        return handlers.get(handler_call_details.method)


def _rpc_handler(
    handle: Callable[[Any, Any], Any],
    streams: bool,
    parse: Callable[[bytes], Any],
    serialize: Callable[[Any], bytes] | None,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler that gets requests as a stream, so that the guard reads them itself."""
    kind = (
        grpc.stream_stream_rpc_method_handler if streams else grpc.stream_unary_rpc_method_handler
    )
    return kind(handle, request_deserializer=parse, response_serializer=serialize)


def _safe_deserializer(parse: Callable[[bytes], Any], *, with_size: bool) -> Callable[[bytes], Any]:
    """Reject malformed messages as INVALID_ARGUMENT; grpc.aio would use UNKNOWN.

    Args:
        parse: The `FromString` of a message's class.
        with_size: Whether to return it as `Received`.
    """
    parse = bounded(parse, parse.__self__.DESCRIPTOR)  # type: ignore[attr-defined]

    def parse_or_reject(content: bytes) -> Any:
        try:
            message = parse(content)
        except DecodeError as error:
            raise InvalidRequest(
                "message", f"is not the protobuf message that this method takes: {error}"
            ) from None
        return Received(message, len(content)) if with_size else message

    return parse_or_reject
