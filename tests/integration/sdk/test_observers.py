"""Events of the SDK's observers, which cannot affect calls."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

import resnet50_client
from resnet50.v1 import image_pb2, inference_pb2
from resnet50_client import AsyncClient, CallObserver, ObservedCall, RetryPolicy
from resnet50_client._unary import UPLOAD_ABOVE_BYTES
from resnet50_client.testing import FakeServer
from tests.support.clients import Caller, items
from tests.support.pictures import encode, picture
from tests.support.serving import gate, serving, until, watched

PNG = encode(picture())
CLASSIFY = "resnet50.v1.InferenceService/Classify"


class Recorder(CallObserver):
    """Keeps what it is told; adds metadata to each call."""

    def __init__(self, *metadata) -> None:
        self.metadata = metadata
        self.started: list[ObservedCall] = []
        self.ended: list[ObservedCall] = []
        self.retries: list[Exception] = []
        self.frames: list[int] = []

    def call_started(self, call):
        assert (call.code, call.duration_s) == ("", 0.0)
        call.metadata += self.metadata
        self.started.append(call)

    def call_retried(self, call, error, pause_s):
        assert pause_s > 0
        self.retries.append(error)

    def frame_answered(self, call, answer):
        assert call is self.started[-1]
        self.frames.append(answer.frame_id)

    def call_ended(self, call):
        assert call is self.started[-1]
        assert call.duration_s > 0
        self.ended.append(call)


async def test_a_call_is_seen_from_start_to_end(kind):
    recorder = Recorder(("x-team", "pets"))
    async with serving() as server:
        seen = watched(server)
        async with Caller(kind, server.addresses[0], observers=[recorder]) as client:
            result = await client.classify(PNG)
    (call,) = recorder.ended
    assert (call.method, call.code, call.error, call.attempts) == (CLASSIFY, "OK", None, 1)
    assert call.servers == (server.addresses[0],)
    assert (call.timing, call.variant) == (result.timing, result.variant)
    sent = inference_pb2.ClassifyRequest(options={}, image=image_pb2.Image(encoded=PNG))
    assert call.bytes_sent == sent.ByteSize()
    (arrived,) = seen
    assert arrived.request_id == call.request_id != ""
    assert ("x-team", "pets") in arrived.metadata


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("list_variants", "resnet50.v1.VariantService/ListVariants"),
        ("get_variant", "resnet50.v1.VariantService/GetVariant"),
        ("health", "grpc.health.v1.Health/Check"),
    ],
)
async def test_other_calls_are_seen_too(kind, method, name):
    recorder = Recorder()
    async with (
        serving() as server,
        Caller(kind, server.addresses[0], observers=[recorder]) as client,
    ):
        await getattr(client, method)()
    (call,) = recorder.ended
    assert (call.method, call.code, call.timing) == (name, "OK", None)


async def test_an_upload_is_seen_as_what_it_is(kind):
    recorder = Recorder()
    large = PNG + bytes(UPLOAD_ABOVE_BYTES)
    async with (
        serving() as server,
        Caller(kind, server.addresses[0], observers=[recorder]) as client,
    ):
        await client.embed(large)
    (call,) = recorder.ended
    assert call.method == "resnet50.v1.InferenceService/EmbedUpload"
    assert len(large) < call.bytes_sent < len(large) + 1024
    assert call.timing is not None


async def test_waiting_for_a_server_is_observed_as_one_call(kind):
    recorder = Recorder()
    async with Caller(kind, "127.0.0.1:1", observers=[recorder]) as client:
        with pytest.raises(resnet50_client.DeadlineExceededError):
            await client.wait_until_ready(timeout_s=0.5)
    async with (
        serving() as server,
        Caller(kind, server.addresses[0], observers=[recorder]) as client,
    ):
        await client.wait_until_ready()
    assert [call.code for call in recorder.ended] == ["DEADLINE_EXCEEDED", "OK"]
    assert {call.method for call in recorder.ended} == {"grpc.health.v1.Health/Check"}
    assert recorder.ended[0].attempts > 1


async def test_without_observers_only_a_request_id_is_sent(kind):
    async with serving() as server:
        seen = watched(server)
        async with Caller(kind, server.addresses[0]) as client:
            await client.classify(PNG)
    assert {key for key, _ in seen[0].metadata} <= {
        "user-agent",
        "accept-encoding",
        "x-request-id",
    }


async def test_request_ids_do_not_follow_the_programs_seed(kind):
    states, ids = set(), set()
    with FakeServer() as server:
        for _ in range(2):
            random.seed(7)
            async with Caller(kind, server.address) as client:
                await client.classify(PNG)
            states.add(random.getstate())
        ids = {one.metadata["x-request-id"] for one in server.received}
    assert (len(ids), len(states)) == (2, 1)


async def test_an_observer_may_name_the_request(kind):
    recorder = Recorder(("x-request-id", "mine"))
    async with serving() as server:
        seen = watched(server)
        async with Caller(kind, server.addresses[0], observers=[recorder]) as client:
            await client.classify(PNG)
    assert seen[0].request_id == recorder.ended[0].request_id == "mine"


async def test_request_id_of_the_call_goes_before_an_observers(kind):
    recorder = Recorder(("x-request-id", "theirs"))
    async with serving() as server:
        seen = watched(server)
        async with Caller(kind, server.addresses[0], observers=[recorder]) as client:
            await client.classify(PNG, request_id="mine")
    assert seen[0].request_id == recorder.ended[0].request_id == "mine"


async def test_an_error_is_seen_as_the_caller_gets_it(kind):
    recorder = Recorder()
    async with (
        serving() as server,
        Caller(kind, server.addresses[0], observers=[recorder]) as client,
    ):
        with pytest.raises(resnet50_client.VariantNotFoundError) as raised:
            await client.classify(PNG, variant="cats")
    (call,) = recorder.ended
    assert (call.code, call.error) == ("NOT_FOUND", raised.value)
    assert call.request_id == raised.value.request_id


async def test_a_call_that_nobody_answers_ends_too(kind):
    recorder = Recorder()
    policy = RetryPolicy(attempts=1)
    async with Caller(kind, "127.0.0.1:1", retry=policy, observers=[recorder]) as client:
        with pytest.raises(resnet50_client.UnavailableError):
            await client.classify(PNG)
    (call,) = recorder.ended
    assert call.code == "UNAVAILABLE"
    assert call.request_id  # which a server would log


async def test_repeated_calls_are_one_call(kind):
    recorder = Recorder()
    settings = {"engine": "timed", "timed_alpha_ms": 30, "max_queue_size": 1, "max_batch_size": 1}
    policy = RetryPolicy(overload_attempts=1000)
    async with (
        serving(**settings) as server,
        Caller(kind, server.addresses[0], retry=policy) as others,
        Caller(kind, server.addresses[0], retry=policy, observers=[recorder]) as client,
    ):
        full = asyncio.Event()
        work = [asyncio.create_task(busy(others, full)) for _ in range(4)]
        calling = asyncio.create_task(until_repeated(client, recorder))
        await until(lambda: recorder.retries)
        full.set()  # or the call might meet a full server again and again
        await asyncio.gather(calling, *work)
    last = recorder.ended[-1]
    assert last.code == "OK"
    assert last.attempts == 1 + len(recorder.retries)
    assert isinstance(recorder.retries[0], resnet50_client.OverloadedError)
    first = recorder.ended[0].bytes_sent / recorder.ended[0].attempts
    assert last.bytes_sent == first * last.attempts


async def until_repeated(client, recorder: Recorder) -> None:
    while not recorder.retries:
        await client.classify(PNG)


async def busy(client, full: asyncio.Event) -> None:
    while not full.is_set():
        await client.classify(PNG)


async def test_a_stream_is_one_call_with_its_frames(kind):
    recorder = Recorder()
    async with (
        serving() as server,
        Caller(kind, server.addresses[0], observers=[recorder]) as client,
    ):
        answers = [one async for one in items(client, "classify_stream", [PNG, b"no image", PNG])]
    (call,) = recorder.ended
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert recorder.frames == [0, 1, 2]
    assert call.method == "resnet50.v1.InferenceService/ClassifyStream"
    assert (call.code, call.frames, call.failed_frames, call.dropped_frames) == ("OK", 2, 1, 0)
    assert call.bytes_sent > 2 * len(PNG)


async def test_dropped_frames_are_seen(kind):
    recorder = Recorder()
    async with (
        serving(engine="timed", timed_alpha_ms=20) as server,
        Caller(kind, server.addresses[0], observers=[recorder]) as client,
    ):
        answers = [
            one async for one in items(client, "classify_stream", [PNG] * 30, delivery="latest")
        ]
    (call,) = recorder.ended
    dropped = sum(answer.dropped for answer in answers)
    assert dropped
    assert (call.frames, call.dropped_frames) == (30 - dropped, dropped)


async def test_a_stream_that_is_left_early_is_cancelled_and_no_error(kind):
    recorder = Recorder()
    async with (
        serving() as server,
        Caller(kind, server.addresses[0], observers=[recorder]) as client,
    ):
        answers = items(client, "classify_stream", [PNG] * 100)
        await anext(answers)
        assert recorder.ended == []
        await answers.aclose()
    (call,) = recorder.ended
    assert (call.code, call.error) == ("CANCELLED", None)


async def test_a_resumed_stream_is_one_call(kind):
    recorder = Recorder()
    async with (
        serving(engine="timed", timed_alpha_ms=5) as one,
        serving(engine="timed", timed_alpha_ms=5) as two,
        Caller(kind, [one.addresses[0], two.addresses[0]], observers=[recorder]) as client,
    ):
        answered, stopping = 0, None
        async for _ in items(client, "classify_stream", [PNG] * 200):
            answered += 1
            if answered == 50:
                used = one if one.snapshot().streams else two
                stopping = asyncio.create_task(used.stop())
        await stopping
    (call,) = recorder.ended
    assert (call.code, call.frames) == ("OK", 200)
    assert call.attempts == 1 + len(recorder.retries) > 1


async def test_a_cancelled_call_ends():
    recorder = Recorder()
    async with (
        serving() as server,
        AsyncClient(server.addresses[0], observers=[recorder]) as client,
    ):
        opened = gate(server)
        try:
            call = asyncio.ensure_future(client.classify(PNG))
            await until(lambda: server.snapshot().requests)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        finally:
            opened.set()
    assert [call.code for call in recorder.ended] == ["CANCELLED"]


class Broken(CallObserver):
    """Fails at everything."""

    def call_started(self, call):
        call.metadata += [("UPPER", "x"), ("grpc-x", "y"), ("line", "\n"), ("one",), None]
        raise RuntimeError("started")

    def frame_answered(self, call, answer):
        raise RuntimeError("frame")

    def call_ended(self, call):
        raise RuntimeError("ended")


async def test_a_broken_observer_harms_no_call_and_is_named_once(kind, caplog):
    recorder = Recorder(("x-team", "pets"))
    async with serving() as server:
        seen = watched(server)
        async with Caller(kind, server.addresses[0], observers=[Broken(), recorder]) as client:
            with caplog.at_level(logging.ERROR, "resnet50_client"):
                await client.classify(PNG)
                assert len([one async for one in items(client, "embed_many", [PNG, PNG])]) == 2
    assert [call.code for call in recorder.ended] == ["OK", "OK"]
    assert all(("x-team", "pets") in call.metadata for call in seen)
    assert len(caplog.records) == 1
