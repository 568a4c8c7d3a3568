"""What every RPC has around it: who calls, whether there is room, and a status out.

A call is judged before its message is read: one that is refused costs no more than its headers. So
methods with one request are registered as if they had many, and the request is read here. It takes
its permit once the message is there. Answers are counted until the client has taken them.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from random import getrandbits
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from resnet50_server.auth.identity import Authenticator
from resnet50_server.context import BULK, CURRENT_REQUEST, INTERACTIVE, Metadata, RequestContext
from resnet50_server.errors import InvalidRequest, code_of
from resnet50_server.events import ServerEvents
from resnet50_server.inference.admission import Admission

from .receive_slots import ReceiveSlots
from .send_buffer import SendBuffer
from .status import DETAILS_KEY, REQUEST_ID_KEY, is_server_error, to_status

log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
# What a context's `read` returns after the last message.
EOF = grpc.aio.EOF

PRIORITY_KEY = "x-priority"
CALLER_KEY = "x-caller-key"
# Proxies and tracing add a dozen; HPACK packs hundreds of pairs into as many bytes.
MAX_METADATA_PAIRS = 64
# So long does it take at most until gRPC tells that a caller has left.
CANCEL_GRACE_S = 0.05
# A call that its caller's deadline has ended has so much left of it here: its way back and forth,
# and what gRPC adds when it rounds a timeout up, which is at most so large a part of it.
DEADLINE_TOLERANCE_S = 0.005
DEADLINE_ROUNDING = 0.01
# What a caller may choose as its request id: it is logged and sent back.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CALLER_KEY = re.compile(r"[ -~]{1,128}")


class RpcGuard:
    """Stands between gRPC and servicers.

    What they raise becomes a status with google.rpc details. The request id is the caller's
    `x-request-id`, or a fresh one; it comes back in the trailing metadata.

    Args:
        callers: Tells who calls.
        admission: Gives permits to calls with one response, and counts those with many.
        receiving: Reads the one request of a call.
        outbox: Counts answers that have not been taken.
        events: Receive every call.
    """

    def __init__(
        self,
        callers: Authenticator,
        admission: Admission,
        receiving: ReceiveSlots,
        outbox: SendBuffer,
        events: ServerEvents,
    ) -> None:
        self._callers = callers
        self._admission = admission
        self._receiving = receiving
        self._outbox = outbox
        self._events = events

    def add(
        self,
        add: Callable[[Any, Any], None],
        servicer: object,
        server: grpc.aio.Server,
        scope: str | None,
        scopes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add a servicer behind this boundary.

        Args:
            add: The stubs' `add_…_to_server`.
            servicer: What it adds.
            server: Where to.
            scope: What callers must be allowed to do; None: anybody may call.
            scopes: The same for single methods, by name.
        """
        add(servicer, _GuardedServer(server, self, scope, scopes))

    def guard(self, name: str, handler: Any, scope: str | None) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler that gRPC gets in the place of the stubs'.

        Args:
            name: The method's.
            handler: The stubs'.
            scope: As `add`.
        """
        around = self._around_stream if handler.response_streaming else self._around_unary
        kind = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return kind(
            around(name, handler, scope),
            request_deserializer=_safe_deserializer(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def refusal(self, name: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler for calls of a method that have too much metadata.

        Args:
            name: The method's.
            handler: What `guard` returned for it.
        """

        async def refuse(requests: Any, context: Context) -> NoReturn:
            call = RequestContext(name, _request_id(()), ())
            self._events.call_started(call)
            error = InvalidRequest(
                "metadata", f"has more pairs than {MAX_METADATA_PAIRS}, the limit; send fewer"
            )
            caller = self._callers.peer_identity(context.peer(), context.auth_context())
            self._outbox.add(caller.name, 0)
            try:
                await _abort(context, error, call)
            finally:
                self._events.call_ended(call, code_of(error), error)

        kind = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return kind(refuse, handler.request_deserializer, handler.response_serializer)

    def _around_unary(self, name: str, handler: Any, scope: str | None) -> Handler:
        method = handler.stream_unary or handler.unary_unary

        async def answered(requests: Any, context: Context) -> Any:
            call = self._enter(name, context)
            code, failure = "CANCELLED", None
            try:
                self._identify(call, context, scope)
                if not handler.request_streaming:
                    self._admission.check(call.caller.name, bulk=call.bulk)
                    requests = await self._receive(call, context)
                with self._admission.admit(call.caller.name, bulk=call.bulk) as call.permit:
                    response = await method(requests, context)
                code = "OK"
                self._outbox.add(call.caller.name, response.ByteSize())
                return response
            except asyncio.CancelledError:
                code = _code_of_cancelled(context, call)
                raise
            except Exception as error:
                code, failure = code_of(error), error
                self._outbox.add(call.caller.name, 0)
                await _abort(context, error, call)
            finally:
                self._leave(call, code, failure)
                # gRPC keeps the error that ends a call, whose traceback holds this frame, in a
                # circle: the request would stay in memory until garbage is looked for.
                del requests

        return answered

    def _around_stream(self, name: str, handler: Any, scope: str | None) -> Handler:
        method = handler.stream_stream or handler.unary_stream

        async def streamed(requests: Any, context: Context) -> None:
            call = self._enter(name, context)
            code, failure = "CANCELLED", None
            try:
                self._identify(call, context, scope)
                with self._admission.stream(call.caller.name):
                    if not handler.request_streaming:
                        requests = await self._receive(call, context)
                    async with aclosing(method(requests, context)) as responses:
                        async for response in responses:
                            await context.write(response)
                code = "OK"
                self._outbox.add(call.caller.name, 0)
            except asyncio.CancelledError:
                code = _code_of_cancelled(context, call)
                raise
            except Exception as error:
                code, failure = code_of(error), error
                self._outbox.add(call.caller.name, 0)
                await _abort(context, error, call)
            finally:
                self._leave(call, code, failure)

        return streamed

    def refuse_unknown(self, server: grpc.aio.Server) -> None:
        """Answer calls of methods that no servicer has; to be added behind all servicers."""

        async def refuse(_: Any, context: Context) -> None:
            caller = self._callers.peer_identity(context.peer(), context.auth_context())
            self._outbox.add(caller.name, 0)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        server.add_generic_rpc_handlers((_Unknown(grpc.stream_stream_rpc_method_handler(refuse)),))

    def _enter(self, method: str, context: Context) -> RequestContext:
        """Give a call its id, for the log and the caller."""
        metadata: Metadata = tuple(context.invocation_metadata() or ())
        call = RequestContext(method, _request_id(metadata), metadata)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        CURRENT_REQUEST.set(call)
        self._events.call_started(call)
        return call

    def _leave(self, call: RequestContext, code: str, failure: Exception | None) -> None:
        self._events.call_ended(call, code, failure)

    def _identify(self, call: RequestContext, context: Context, scope: str | None) -> None:
        """Say who calls, how urgent it is, and who the caller is to a traffic split.

        Raises:
            ServingError: They may not, or say it wrongly.
        """
        peer, connection = context.peer(), context.auth_context()
        if scope is None:
            call.caller = self._callers.peer_identity(peer, connection)
        else:
            call.caller = self._callers.authenticate(call.metadata, peer, connection)
            call.caller.require(scope)
        for key, value in call.metadata:
            if key == PRIORITY_KEY:
                if value not in (INTERACTIVE, BULK):
                    raise InvalidRequest(
                        PRIORITY_KEY, f"(metadata) must be {INTERACTIVE!r} or {BULK!r}"
                    )
                call.bulk = value == BULK
            elif key == CALLER_KEY:
                if not isinstance(value, str) or not _CALLER_KEY.fullmatch(value):
                    raise InvalidRequest(
                        CALLER_KEY, "(metadata) must be 1 to 128 printable ASCII characters"
                    )
                call.key = value

    async def _receive(self, call: RequestContext, context: Context) -> Any:
        """Return the one request of a call.

        Raises:
            InvalidRequest: There is none, or it is not what the method takes.
            Overloaded: The server waits for too many messages.
            Stalled: It takes too long to arrive.
        """
        try:
            request = await self._receiving.read(call.caller.name, context.read)
            if request is EOF:
                # A caller who has left ends its messages a moment before gRPC says so.
                await asyncio.sleep(CANCEL_GRACE_S)
        except asyncio.CancelledError:
            self._events.cancelled(call, "receive")
            raise
        if request is EOF:
            # Also where gRPC itself refused the message as too long, and has said so.
            raise InvalidRequest("message", "is missing: the call ended without a request")
        return request


class _Unknown(grpc.GenericRpcHandler):
    """Handles every method in the same way."""

    def __init__(self, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        self._handler = handler

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler."""
        return self._handler


class _GuardedServer:
    """Takes the place of the server while the stubs register their methods."""

    def __init__(
        self,
        server: grpc.aio.Server,
        boundary: RpcGuard,
        scope: str | None,
        scopes: Mapping[str, str],
    ) -> None:
        self._server = server
        self._boundary = boundary
        self._scope = scope
        self._scopes = scopes

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: the stubs also register the same methods by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Register methods behind the boundary."""
        guarded = {
            name: self._boundary.guard(name, handler, self._scopes.get(name, self._scope))
            for name, handler in handlers.items()
        }
        generic = _Handlers(service, guarded, self._boundary)
        self._server.add_generic_rpc_handlers((generic,))


class _Handlers(grpc.ServiceRpcHandler):
    """The methods of a service; calls with too much metadata get a refusal instead.

    gRPC has decoded the metadata by then. Whatever else looks at it would have it decoded again.
    """

    def __init__(
        self,
        service: str,
        handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
        boundary: RpcGuard,
    ) -> None:
        self._service = service
        self._handlers = {f"/{service}/{name}": handler for name, handler in handlers.items()}
        self._refusals = {
            f"/{service}/{name}": boundary.refusal(name, handlers[name]) for name in handlers
        }

    def service_name(self) -> str:
        """Return the service's full name."""
        return self._service

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return what answers a call; None if there is no such method."""
        pairs = len(handler_call_details.invocation_metadata or ())
        handlers = self._handlers if pairs <= MAX_METADATA_PAIRS else self._refusals
        return handlers.get(handler_call_details.method)


def _safe_deserializer(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Refuse malformed messages as INVALID_ARGUMENT; grpc.aio would say UNKNOWN."""

    def parse_or_refuse(content: bytes) -> Any:
        try:
            return parse(content)
        except DecodeError as error:
            raise InvalidRequest(
                "message", f"is not the protobuf message that this method takes: {error}"
            ) from None

    return parse_or_refuse


async def _abort(context: Context, error: Exception, call: RequestContext) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if is_server_error(error):
        log.error("request %s failed", call.request_id, exc_info=error)
    status = to_status(error, call.request_id)
    try:
        await context.abort(
            grpc.StatusCode[code_of(error)],
            status.message,
            ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, call.request_id)),
        )
    except grpc.aio.InternalError:
        # The call is over, its deadline has passed most likely: there is nobody to tell.
        log.debug(
            "request %s ended before it could be refused: %s", call.request_id, status.message
        )
        raise asyncio.CancelledError from error


def _code_of_cancelled(context: Context, call: RequestContext) -> str:
    """Return how a call ended that gRPC has cancelled: by its deadline, or by its caller."""
    left_s = context.time_remaining()
    if left_s is None:
        return "CANCELLED"
    whole_s = left_s + time.perf_counter() - call.started
    late = left_s <= DEADLINE_TOLERANCE_S + DEADLINE_ROUNDING * whole_s
    return "DEADLINE_EXCEEDED" if late else "CANCELLED"


def _request_id(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    # Not uuid4: it asks the kernel, and gives up the GIL for that.
    return f"{getrandbits(128):032x}"
