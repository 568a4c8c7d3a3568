"""The guard of RPCs, without a network."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest

from resnet50.v1 import inference_pb2
from resnet50_server.api.call import Received
from resnet50_server.api.guard import RpcGuard
from resnet50_server.api.receive_slots import ReceiveSlots
from resnet50_server.api.send_buffer import SendBuffer
from resnet50_server.auth.identity import Authenticator
from resnet50_server.errors import InvalidRequest
from resnet50_server.events import ServerEvents
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.quotas import Limits

MIB = 2**20
REQUEST = inference_pb2.EmbedRequest()


class Context:
    """A call whose message has arrived.

    Args:
        over: Whether it has ended by its deadline, so that gRPC sends no status.
    """

    def __init__(self, over: bool = False) -> None:
        self.codes: list[grpc.StatusCode] = []
        self._over = over

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: Any) -> None:
        pass

    def peer(self) -> str:
        return "unix:"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    async def read(self) -> Received:
        return Received(REQUEST, REQUEST.ByteSize())

    async def abort(self, code: grpc.StatusCode, message: str, metadata: Any) -> None:
        if self._over:
            raise grpc.aio.InternalError("the call has ended")
        self.codes.append(code)
        raise grpc.aio.AbortError


class Codes(ServerEvents):
    """Keeps how calls ended."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def call_ended(self, call: Any, code: str, error: Exception | None) -> None:
        self.codes.append(code)


class Calls:
    """Makes calls of one method behind a guard."""

    def __init__(self, *, streams: bool, fails: bool) -> None:
        self.events, self.unsent = Codes(), SendBuffer(MIB, 60.0)
        guard = RpcGuard(
            Authenticator(None),
            Admission(Limits()),
            ReceiveSlots(MIB, MIB, MIB, 10, 60.0),
            self.unsent,
            self.events,
        )

        async def method(request: Any, call: Any) -> bytes:
            if fails:
                raise InvalidRequest("image", "is wrong")
            return b"answer"

        handler = (
            grpc.unary_stream_rpc_method_handler(method)
            if streams
            else grpc.unary_unary_rpc_method_handler(method, response_serializer=bytes)
        )
        self._wrapped = guard.wrap("Method", handler, None, pass_call=True)

    async def call(self, context: Context) -> int:
        """Return how many calls wait to be sent once the method has returned."""
        with contextlib.suppress(grpc.aio.AbortError, asyncio.CancelledError):
            await self._wrapped(None, context)
        return len(self.unsent)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_end_of_a_call_is_counted_until_it_is_sent(streams, fails):
    calls, context = Calls(streams=streams, fails=fails), Context()
    assert await asyncio.create_task(calls.call(context)) == 1
    await asyncio.sleep(0)  # the callbacks of the call's task
    assert len(calls.unsent) == 0
    assert context.codes == ([grpc.StatusCode.INVALID_ARGUMENT] if fails else [])
    assert calls.events.codes == (["INVALID_ARGUMENT"] if fails else ["OK"])
    calls.unsent.close()


@pytest.mark.parametrize("streams", [False, True])
async def test_refusal_of_a_call_that_has_ended_is_no_error(streams):
    calls, context = Calls(streams=streams, fails=True), Context(over=True)
    assert await asyncio.create_task(calls.call(context)) == 1
    assert calls.events.codes == ["INVALID_ARGUMENT"]
    calls.unsent.close()
