"""Channel options, interceptors, compression and wait_for_ready of both clients."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from resnet50_client import (
    AsyncClient,
    CallCancelledError,
    CallObserver,
    Client,
    DeadlineExceededError,
    InvalidImageError,
    OverloadedError,
    RetryPolicy,
    ServerError,
    UnavailableError,
)
from resnet50_client._unary import UPLOAD_ABOVE_BYTES
from resnet50_client.admin import AdminClient
from tests.support.clients import Caller, items
from tests.support.faults import line_to
from tests.support.serving import serving, until

ONCE = RetryPolicy(attempts=1)
LARGE = bytes(UPLOAD_ABOVE_BYTES + 1)


# Interceptors


def _with_metadata(details: Any) -> Any:
    """Return call details with one more metadata entry."""
    return details._replace(metadata=[*details.metadata, ("x-intercepted", "yes")])


class _BlockingDetails(grpc.ClientCallDetails):
    def __init__(self, details: Any) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = [*details.metadata, ("x-intercepted", "yes")]
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


class Blocking(
    grpc.UnaryUnaryClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Records the methods of calls and adds metadata."""

    def __init__(self, methods: list[str]) -> None:
        self.methods = methods

    def _record(self, continuation, details, request):
        self.methods.append(details.method.rpartition("/")[2])
        return continuation(_BlockingDetails(details), request)

    intercept_unary_unary = _record
    intercept_stream_unary = _record
    intercept_stream_stream = _record


class _Asynchronous:
    def __init__(self, methods: list[str]) -> None:
        self.methods = methods

    async def record(self, continuation, details, request):
        self.methods.append(details.method.decode().rpartition("/")[2])
        details.metadata.add("x-intercepted", "yes")
        return await continuation(details, request)


class OfUnaryCalls(_Asynchronous, grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary = _Asynchronous.record


class OfUploads(_Asynchronous, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary = _Asynchronous.record


class OfStreams(_Asynchronous, grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream = _Asynchronous.record


def recording(kind: type, methods: list[str]) -> Sequence[Any]:
    """Return interceptors of all kinds of calls, which record the methods of attempts."""
    if kind is Client:
        return [Blocking(methods)]
    return [one(methods) for one in (OfUnaryCalls, OfUploads, OfStreams)]


async def called(caller: Caller, shape: str) -> Any:
    """Make a call of a shape, for one image."""
    if shape == "stream":
        (answer,) = [one async for one in items(caller, "classify_stream", [b"image"])]
        return answer.result
    if shape == "bulk":
        (result,) = [one async for one in items(caller, "classify_many", [b"image"])]
        return result
    return await caller.classify(LARGE if shape == "upload" else b"image")


SHAPES = {
    "unary": "Classify",
    "upload": "ClassifyUpload",
    "stream": "ClassifyStream",
    "bulk": "Classify",  # one image
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_interceptors_see_and_change_calls(kind, server, shape):
    methods: list[str] = []
    async with Caller(kind, server.address, interceptors=recording(kind, methods)) as client:
        assert len(await called(client, shape)) == 2
    assert methods == [SHAPES[shape]]
    assert server.received[0].metadata["x-intercepted"] == "yes"


@pytest.mark.parametrize("shape", ["unary", "upload"])
async def test_interceptors_see_each_attempt(kind, server, shape):
    methods: list[str] = []
    server.script(UnavailableError("restarting"))
    async with Caller(kind, server.address, interceptors=recording(kind, methods)) as client:
        assert len(await called(client, shape)) == 2
    assert methods == [SHAPES[shape]] * 2


@pytest.mark.parametrize("shape", ["unary", "upload"])
async def test_errors_pass_through_interceptors(kind, server, shape):
    server.script(OverloadedError("full", retry_after_s=0.25))
    async with Caller(kind, server.address, interceptors=recording(kind, [])) as client:
        with pytest.raises(OverloadedError, match="full") as raised:
            await called(client, shape)
    assert raised.value.retry_after_s == 0.25


async def test_upload_rejected_early_keeps_its_status_with_interceptors(kind):
    async with serving() as server:
        interceptors = recording(kind, [])
        async with Caller(kind, server.addresses[0], interceptors=interceptors) as client:
            with pytest.raises(InvalidImageError):
                await client.classify(b"no image" * 2**20)


@pytest.mark.parametrize("shape", SHAPES)
async def test_close_ends_intercepted_calls(kind, server, shape):
    server.delay_s = 600.0
    async with Caller(kind, server.address, interceptors=recording(kind, [])) as client:
        call = asyncio.ensure_future(called(client, shape))
        await until(lambda: server.received)
        await client.close()
        with pytest.raises(CallCancelledError):
            await call


@pytest.mark.parametrize("shape", SHAPES)
async def test_intercepted_call_is_cancelled_with_its_task(server, shape):
    server.delay_s = 600.0
    async with Caller(AsyncClient, server.address, interceptors=recording(AsyncClient, [])) as one:
        call = asyncio.ensure_future(called(one, shape))
        await until(lambda: server.received)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_interceptors_of_the_other_client_are_refused():
    with pytest.raises(TypeError, match=r"^interceptors: OfUnaryCalls is not .* of grpc, e\.g\."):
        Client(interceptors=[OfUnaryCalls([])])
    with pytest.raises(TypeError, match=r"^interceptors: Blocking is not .* of grpc\.aio, e\.g\."):
        AsyncClient(interceptors=[Blocking([])])
    with pytest.raises(ValueError, match=r"^interceptors: .* must be a list"):
        Client(interceptors=Blocking([]))


class _Broken:
    """The answers of an intercepted stream, of which the first one cannot be taken."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __iter__(self) -> _Broken:
        return self

    def __next__(self) -> None:
        raise ZeroDivisionError("the interceptor is broken")


class BrokenAnswers(grpc.StreamStreamClientInterceptor):
    """Fails with the first answer of a stream."""

    def intercept_stream_stream(self, continuation, client_call_details, request_iterator):
        return _Broken(continuation(client_call_details, request_iterator))


class BrokenStreams(grpc.aio.StreamStreamClientInterceptor):
    """Fails with each stream."""

    async def intercept_stream_stream(self, continuation, client_call_details, request_iterator):
        raise ZeroDivisionError("the interceptor is broken")


async def test_error_of_an_interceptor_ends_its_stream(kind, server):
    interceptors = [BrokenAnswers() if kind is Client else BrokenStreams()]
    async with Caller(kind, server.address, interceptors=interceptors, timeout_s=1e6) as client:
        with pytest.raises(ZeroDivisionError, match="the interceptor is broken"):
            await called(client, "stream")


# Options of channels


async def test_channel_options_go_before_those_of_the_sdk(kind, server):
    options = {"grpc.primary_user_agent": "an-app", "grpc.max_receive_message_length": 20}
    async with Caller(kind, server.address, channel_options=options, retry=ONCE) as client:
        with pytest.raises(ServerError, match="more than this client's limit of 20"):
            await client.classify(b"image")
    assert server.received[0].metadata["user-agent"].startswith("an-app ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel_options": {"max": 1}}, "the name 'max' must begin with \"grpc.\""),
        ({"channel_options": {"grpc.max": 1.5}}, r"grpc\.max is 1\.5, must be an integer or text"),
        ({"channel_options": {"grpc.ssl_target_name_override": "a"}}, "the argument server_name"),
        ({"channel_options": ["grpc.max"]}, "must map names to values"),
        ({"channel_options": {"grpc.max": 2**31}}, r"grpc\.max is 2147483648, must be -21474836"),
        (
            {"channel_options": {"grpc.service_config": "{}"}, "wait_for_ready": True},
            r"wait_for_ready: channel_options has grpc\.service_config, which replaces it",
        ),
        ({"compression": "zstd"}, "compression: is 'zstd', must be one of gzip, deflate"),
        ({"wait_for_ready": "no"}, "wait_for_ready: is 'no', must be True or False"),
    ],
)
def test_wrong_settings_of_channels_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


async def test_compressed_requests_are_shorter(kind, server):
    sent = []
    for compression in (None, "gzip", "deflate"):
        async with (
            line_to(server.address) as line,
            Caller(kind, line.address, compression=compression) as client,
        ):
            await client.classify(np.zeros((256, 256, 3), np.uint8))
            sent.append(line.sent)
    assert sent[0] > 256 * 256 * 3
    assert max(sent[1:]) < sent[0] / 10
    assert [one.image.pixels for one in server.received] == [bytes(256 * 256 * 3)] * 3


# Waiting for a connection


class Started(CallObserver):
    """Counts calls."""

    def __init__(self) -> None:
        self.count = 0

    def call_started(self, call):
        self.count += 1


async def test_wait_for_ready_waits_for_a_server(kind):
    """Two refused connections: without it, the first would have ended the call."""
    observer = Started()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        settings = {"retry": ONCE, "wait_for_ready": True, "observers": [observer]}
        async with Caller(kind, address, timeout_s=60.0, **settings) as client:
            call = asyncio.ensure_future(client.list_variants())
            for _ in range(2):
                connection, _ = await asyncio.to_thread(listener.accept)
                connection.close()
            listener.close()
            assert not call.done()
            async with serving(listen=[address]):
                assert len(await call) == 1
    assert observer.count == 1


async def test_waiting_for_a_server_says_why_it_failed(kind):
    async with Caller(kind, "127.0.0.1:1", wait_for_ready=True) as client:
        with pytest.raises(DeadlineExceededError, match=r"last status: .*127\.0\.0\.1:1"):
            await client.wait_until_ready(timeout_s=0.5)


async def test_settings_of_channels_are_pickled_with_a_client(server):
    settings = {"compression": "gzip", "channel_options": {"grpc.primary_user_agent": "an-app"}}
    copy = pickle.loads(pickle.dumps(AdminClient(server.address, **settings)))
    copy.close()
    client = pickle.loads(pickle.dumps(Client(server.address, **settings)))
    await asyncio.to_thread(client.classify, b"image")
    client.close()
    assert server.received[0].metadata["user-agent"].startswith("an-app ")
