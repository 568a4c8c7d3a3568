"""Authentication, admission and status codes of every RPC.

A call is authenticated and checked before its message is read, so a rejected one costs no more than
its headers. Methods with one request are therefore registered as if they had many, and the guard
reads the request. The permit is acquired when the message has arrived. Single responses are
serialized here, and counted until the client has taken them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

import grpc

from resnet50_server.auth.identity import Authenticator
from resnet50_server.context import CURRENT_REQUEST, Metadata
from resnet50_server.errors import InvalidRequest, code_of
from resnet50_server.events import ServerEvents
from resnet50_server.inference.admission import Admission

from .call import EOF, Call, GrpcContext
from .metadata import REQUEST_ID_KEY, read_options, request_id
from .receive_slots import ReceiveSlots
from .registration import MAX_METADATA_PAIRS, GuardedServer, UnknownMethods
from .send_buffer import SendBuffer
from .status import DETAILS_KEY, is_server_error, to_status

log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Any, GrpcContext], Awaitable[Any]]

# gRPC reports that a client has cancelled within this time.
CANCEL_GRACE_S = 0.05
# When a client's deadline ends a call, the server's copy of it has this much left: the way to the
# server and back, and gRPC's rounding of timeouts, up to this part of the timeout.
DEADLINE_TOLERANCE_S = 0.005
DEADLINE_ROUNDING = 0.01
# gRPC reports a missing deadline as None, or as a time beyond any calendar.
NO_DEADLINE_S = 1e8


class RpcGuard:
    """Wraps the methods of services.

    Exceptions become a status with google.rpc details. The request id is the client's
    `x-request-id`, or a generated one; it is sent back in the trailing metadata.

    Args:
        authenticator: Identifies callers.
        admission: Gives permits to calls with one response, and counts streams.
        receiving: Reads the one request of a call.
        unsent: Counts responses that clients have not taken.
        events: Receive every call.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        admission: Admission,
        receiving: ReceiveSlots,
        unsent: SendBuffer,
        events: ServerEvents,
    ) -> None:
        self._authenticator = authenticator
        self._admission = admission
        self._receiving = receiving
        self._unsent = unsent
        self._events = events

    def add(
        self,
        add: Callable[[Any, Any], None],
        servicer: object,
        server: grpc.aio.Server,
        scope: str | None,
        scopes: Mapping[str, str] = MappingProxyType({}),
        *,
        pass_call: bool = False,
    ) -> None:
        """Register a servicer behind this guard.

        Args:
            add: The stubs' `add_…_to_server`.
            servicer: The servicer.
            server: The server.
            scope: The scope that callers need; None if they need none.
            scopes: The same of single methods, by name.
            pass_call: Whether its methods get the `Call` instead of gRPC's context, and write
                the responses of streams themselves.
        """
        add(servicer, GuardedServer(server, self, scope, scopes, pass_call))

    def add_unknown_methods(self, server: grpc.aio.Server) -> None:
        """Reject the calls of all other methods; to be called after all services were added."""

        async def reject(_: Any, context: GrpcContext) -> None:
            caller = self._authenticator.peer_identity(context.peer(), context.auth_context())
            self._unsent.add(caller.name, 0)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        server.add_generic_rpc_handlers((UnknownMethods(reject),))

    def wrap(self, name: str, handler: Any, scope: str | None, *, pass_call: bool) -> Handler:
        """Return a method with everything that this guard adds.

        Args:
            name: The method's.
            handler: The stubs'.
            scope: The scope that callers need; None if they need none.
            pass_call: See `add`.
        """
        if handler.response_streaming:
            return self._stream_handler(name, handler, scope, pass_call)
        return self._unary_handler(name, handler, scope, pass_call)

    def reject_metadata(self, name: str) -> Handler:
        """Return the handler for calls of a method that have too many metadata pairs."""

        async def reject(requests: Any, context: GrpcContext) -> NoReturn:
            call = Call(name, request_id(()), ())
            self._events.call_started(call)
            error = InvalidRequest(
                "metadata", f"has more pairs than {MAX_METADATA_PAIRS}, the limit; send fewer"
            )
            caller = self._authenticator.peer_identity(context.peer(), context.auth_context())
            self._unsent.add(caller.name, 0)
            try:
                await _abort(context, error, call)
            finally:
                self._events.call_ended(call, code_of(error), error)

        return reject

    def _unary_handler(
        self, name: str, handler: Any, scope: str | None, pass_call: bool
    ) -> Handler:
        method = handler.stream_unary or handler.unary_unary
        serialize: Callable[[Any], bytes] = handler.response_serializer

        async def handle(requests: Any, context: GrpcContext) -> Any:
            call = self._begin(name, context)
            code, failure = "CANCELLED", None
            try:
                self._authenticate(call, scope)
                if not handler.request_streaming:
                    self._admission.check(call.caller.name, bulk=call.bulk)
                    requests = await self._read_request(call)
                permit = self._admission.admit(call.caller.name, call.message_bytes, bulk=call.bulk)
                with permit as call.permit:
                    response = await method(requests, call if pass_call else context)
                    content = serialize(response)
                code = "OK"
                self._unsent.add(call.caller.name, len(content))
                return content
            except asyncio.CancelledError:
                code = _code_of_cancelled(call)
                raise
            except Exception as error:
                code, failure = code_of(error), error
                self._unsent.add(call.caller.name, 0)
                await _abort(context, error, call)
            finally:
                self._events.call_ended(call, code, failure)
                call.grpc = None  # batches reference the call for longer than gRPC may be kept
                # gRPC keeps the error that ends a call in a reference cycle, and its traceback this
                # frame: the request would stay in memory until the next garbage collection.
                del requests

        return handle

    def _stream_handler(
        self, name: str, handler: Any, scope: str | None, pass_call: bool
    ) -> Handler:
        method = handler.stream_stream or handler.unary_stream

        async def handle(requests: Any, context: GrpcContext) -> None:
            call = self._begin(name, context)
            code, failure = "CANCELLED", None
            try:
                self._authenticate(call, scope)
                with self._admission.stream(call.caller.name):
                    if not handler.request_streaming:
                        requests = await self._read_request(call)
                    if pass_call:
                        await method(requests, call)
                    else:
                        async with aclosing(method(requests, context)) as responses:
                            async for response in responses:
                                await context.write(response)
                code = "OK"
                self._unsent.add(call.caller.name, 0)
            except asyncio.CancelledError:
                code = _code_of_cancelled(call)
                raise
            except Exception as error:
                code, failure = code_of(error), error
                self._unsent.add(call.caller.name, 0)
                await _abort(context, error, call)
            finally:
                self._events.call_ended(call, code, failure)
                call.grpc = None  # as above

        return handle

    def _begin(self, method: str, context: GrpcContext) -> Call:
        metadata: Metadata = tuple(context.invocation_metadata() or ())
        call = Call(method, request_id(metadata), metadata, grpc=context)
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s < NO_DEADLINE_S:
            call.deadline = asyncio.get_running_loop().time() + remaining_s
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        CURRENT_REQUEST.set(call)
        self._events.call_started(call)
        return call

    def _authenticate(self, call: Call, scope: str | None) -> None:
        """Set a call's caller, priority, and key for traffic splits.

        Raises:
            ServingError: The caller may not make it, or its metadata are wrong.
        """
        peer, connection = call.grpc.peer(), call.grpc.auth_context()
        if scope is None:
            call.caller = self._authenticator.peer_identity(peer, connection)
        else:
            call.caller = self._authenticator.authenticate(call.metadata, peer, connection)
            call.caller.require(scope)
        read_options(call)

    async def _read_request(self, call: Call) -> Any:
        """Return the one request of a call.

        Raises:
            InvalidRequest: There is none, or it is not what the method takes.
            Overloaded: The server waits for too many messages.
            Stalled: It takes too long to arrive.
        """
        try:
            received = await self._receiving.read(call.caller.name, call.grpc.read)
            if received is EOF:
                # A client that cancels ends its messages a moment before gRPC reports it.
                await asyncio.sleep(CANCEL_GRACE_S)
        except asyncio.CancelledError:
            self._events.cancelled(call, "receive")
            raise
        if received is EOF:
            # Also where gRPC itself rejected the message as too long, and has reported that.
            raise InvalidRequest("message", "is missing: the call ended without a request")
        call.message_bytes = received.size
        return received.message


async def _abort(context: GrpcContext, error: Exception, call: Call) -> NoReturn:
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
        # The call has ended, most likely by its deadline: the status cannot be sent.
        log.debug(
            "request %s ended before it could be rejected: %s", call.request_id, status.message
        )
        raise asyncio.CancelledError from error


def _code_of_cancelled(call: Call) -> str:
    """Return how a call ended that gRPC has cancelled: by its deadline, or by its client."""
    left_s = call.grpc.time_remaining()
    if left_s is None:
        return "CANCELLED"
    whole_s = left_s + time.perf_counter() - call.started
    late = left_s <= DEADLINE_TOLERANCE_S + DEADLINE_ROUNDING * whole_s
    return "DEADLINE_EXCEEDED" if late else "CANCELLED"
