"""One call of each shape: serialized request in, outcome out. Calls are never retried."""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import grpc
import grpc.aio

from resnet50.v1 import image_pb2, inference_pb2, result_pb2
from resnet50_client._aio_status import keep_status
from resnet50_client._auth import Credentials
from resnet50_client._channel_config import ChannelConfig
from resnet50_client._channels import Channels
from resnet50_client._config import Connection
from resnet50_client._profiles import Profile
from resnet50_client._resolver import Resolver
from resnet50_client._retries import RetryPolicy

from . import payloads
from .plan import Plan

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
OK = "OK"
DROPPED = "DROPPED"
PLAINTEXT = Profile()
LATE = grpc.StatusCode.DEADLINE_EXCEEDED.name


@dataclass(frozen=True)
class Outcome:
    """Outcome of a call.

    Attributes:
        code: `OK`, `DROPPED` (replaced by a newer frame) or the name of a gRPC status code.
        timing: The server's times by stage; only with `OK`.
    """

    code: str
    timing: result_pb2.Timing | None = None


Call: TypeAlias = Callable[[int, float], Awaitable[Outcome]]
"""Makes a call, given its number, which selects image and connection, and its deadline (loop time).
"""


@asynccontextmanager
async def calls_of(
    plan: Plan, images: Sequence[image_pb2.Image], access: Profile = PLAINTEXT
) -> AsyncIterator[Call]:
    """Connect to the servers of a plan and return a function that makes its calls.

    Args:
        plan: The benchmark.
        images: The images to send.
        access: Connection options; addresses and timeout are the plan's.

    Raises:
        ValueError: An address or an option in `access` is invalid.
        OSError: A file that `access` names cannot be read.
    """
    async with AsyncExitStack() as stack:
        channels = []
        connection = connection_of(plan, access)
        for _, server in itertools.product(range(plan.channels), plan.servers):
            one = replace(connection, addresses=(server,))
            # Channels to one address would share a connection.
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = Channels(one, Resolver((server,)), grpc.aio, options).stubs().channel
            channels.append(_Channel(await stack.enter_async_context(channel), one))
        if plan.shape == "stream":
            stream = StreamCalls(plan, channels, images)
            stack.push_async_callback(stream.close)
            yield stream
        elif plan.shape == "upload":
            yield UploadCalls(plan, channels, images)
        else:
            yield UnaryCalls(plan, channels, images)


def connection_of(plan: Plan, access: Profile) -> Connection:
    """Return the connection options of a plan's calls.

    Args:
        plan: The benchmark.
        access: As `calls_of`.
    """
    # The plan names the variant.
    arguments = replace(access, server=None, timeout_s=None, variant=None).arguments()
    priority = arguments.pop("priority", "interactive")
    caller_key = arguments.pop("caller_key", None)
    channel = ChannelConfig.of(
        compression=arguments.pop("compression", None),
        wait_for_ready=arguments.pop("wait_for_ready", False),
    )
    return Connection.to(
        plan.servers,
        plan.timeout_s,
        RetryPolicy(attempts=1),  # a retry would hide an error, and add unplanned load
        priority,
        Credentials.of(**arguments),
        caller_key,
        channel=channel,
    )


@dataclass(frozen=True)
class _Channel:
    """A channel with its connection options."""

    channel: grpc.aio.Channel
    connection: Connection

    def method(self, shape: str, path: str, read: Callable[[bytes], Any]) -> Callable[..., Any]:
        """Return a gRPC method that sends the connection's metadata with each call."""
        call = getattr(self.channel, shape)(path, response_deserializer=read)

        def with_metadata(*request: Any, **options: Any) -> Any:
            return call(*request, metadata=self.connection.metadata(), **options)

        return with_metadata


class UnaryCalls:
    """Calls Classify or Embed.

    Args:
        plan: The benchmark.
        channels: Used round-robin.
        images: Sent round-robin.
    """

    def __init__(
        self, plan: Plan, channels: Sequence[_Channel], images: Sequence[image_pb2.Image]
    ) -> None:
        read = payloads.message_kind(plan, "Response").FromString
        path = f"/{SERVICE}/{plan.operation.capitalize()}"
        self._methods: list[Any] = [one.method("unary_unary", path, read) for one in channels]
        self._requests = payloads.unary(plan, images)
        self._clock = asyncio.get_running_loop().time

    async def __call__(self, number: int, deadline: float) -> Outcome:
        """Make one call; see `Call`."""
        method = self._methods[number % len(self._methods)]
        request = self._requests[number % len(self._requests)]
        return await _outcome(method(request, timeout=_left_s(deadline, self._clock())))


class UploadCalls:
    """Calls ClassifyUpload or EmbedUpload; arguments as of `UnaryCalls`."""

    def __init__(
        self, plan: Plan, channels: Sequence[_Channel], images: Sequence[image_pb2.Image]
    ) -> None:
        read = payloads.message_kind(plan, "Response").FromString
        path = f"/{SERVICE}/{plan.operation.capitalize()}Upload"
        self._methods: list[Any] = [one.method("stream_unary", path, read) for one in channels]
        self._uploads = payloads.uploads(plan, images)
        self._clock = asyncio.get_running_loop().time

    async def __call__(self, number: int, deadline: float) -> Outcome:
        """Make one call; see `Call`."""
        method = self._methods[number % len(self._methods)]
        parts = iter(self._uploads[number % len(self._uploads)])
        call = method(parts, timeout=_left_s(deadline, self._clock()))
        return await _outcome(keep_status(call))


async def _outcome(call: Awaitable[Any]) -> Outcome:
    try:
        reply = await call
    except grpc.aio.AioRpcError as failure:
        return Outcome(failure.code().name)
    return Outcome(OK, reply.timing)


def _left_s(deadline: float, now: float) -> float:
    return max(1e-3, deadline - now)


class StreamCalls:
    """Sends frames over a plan's open streams; a call is a frame and its response.

    Args:
        plan: The benchmark.
        channels: Streams are distributed over them.
        images: Sent round-robin.
    """

    def __init__(
        self, plan: Plan, channels: Sequence[_Channel], images: Sequence[image_pb2.Image]
    ) -> None:
        read = payloads.message_kind(plan, "StreamResponse").FromString
        path = f"/{SERVICE}/{plan.operation.capitalize()}Stream"
        methods: list[Any] = [one.method("stream_stream", path, read) for one in channels]
        config = payloads.stream_config(plan)
        self._streams = [
            _Stream(methods[number % len(methods)], config) for number in range(plan.streams)
        ]
        self._frames = payloads.frames(plan, images)

    async def __call__(self, number: int, deadline: float) -> Outcome:
        """Send one frame and wait for its response; see `Call`."""
        frame = self._frames[number % len(self._frames)]
        return await self._streams[number % len(self._streams)].frame(frame, deadline)

    async def close(self) -> None:
        """Cancel the streams."""
        for one in self._streams:
            await one.close()


@dataclass(eq=False)
class _Frame:
    """A pending frame; `outcome` is set by its response, its deadline or its stream's end."""

    make: Callable[[int], bytes]
    outcome: asyncio.Future[Outcome]

    def settle(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class _Stream:
    """One stream, with a queue of frames during gRPC's flow control.

    A broken stream fails its pending frames, and is reopened for the next one.

    Args:
        method: The RPC.
        config: Its first request.
    """

    def __init__(self, method: Any, config: bytes) -> None:
        self._method = method
        self._config = config
        self._waiting: collections.deque[_Frame] = collections.deque()
        self._sent: dict[int, _Frame] = {}
        self._more = asyncio.Event()
        self._session: asyncio.Task[None] | None = None

    async def frame(self, make: Callable[[int], bytes], deadline: float) -> Outcome:
        """Send a frame, unless its deadline expires in the queue."""
        loop = asyncio.get_running_loop()
        frame = _Frame(make, loop.create_future())
        timer = loop.call_at(deadline, frame.settle, Outcome(LATE))
        self._waiting.append(frame)
        self._more.set()
        if self._session is None or self._session.done():
            self._session = asyncio.create_task(self._serve(), name="bench stream")
        try:
            return await frame.outcome
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Cancel the stream."""
        if self._session is not None:
            self._session.cancel()
            await asyncio.wait([self._session])

    async def _serve(self) -> None:
        """Run one gRPC call until it ends, then fail the pending frames."""
        call = keep_status(self._method())
        sender = asyncio.create_task(self._send(call), name="bench stream sender")
        code = grpc.StatusCode.UNKNOWN.name  # ended with OK despite pending frames
        try:
            async for reply in call:
                frame = self._sent.pop(reply.frame_id, None)
                if frame is not None:
                    frame.settle(_frame_outcome(reply))
        except grpc.aio.AioRpcError as failure:
            code = failure.code().name
        finally:
            call.cancel()
            sender.cancel()
            await asyncio.wait([sender])
            for frame in (*self._sent.values(), *self._waiting):
                frame.settle(Outcome(code))
            self._sent.clear()
            self._waiting.clear()

    async def _send(self, call: Any) -> None:
        try:
            await call.write(self._config)
            for frame_id in itertools.count():
                while not self._waiting:
                    self._more.clear()
                    await self._more.wait()
                frame = self._waiting.popleft()
                if not frame.outcome.done():
                    self._sent[frame_id] = frame
                    await call.write(frame.make(frame_id))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call has ended; `_serve` reports its status


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def _frame_outcome(reply: Any) -> Outcome:
    kind = reply.WhichOneof("outcome")
    if kind == "dropped":
        return Outcome(DROPPED)
    if kind == "error":
        return Outcome(_CODES.get(reply.error.code, grpc.StatusCode.UNKNOWN.name))
    return Outcome(OK, reply.timing)
