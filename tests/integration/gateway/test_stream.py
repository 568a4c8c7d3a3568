"""`WS /v1/stream`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
import websockets

from tests.support.gateways import TIMEOUT_S


def frame(number: int, content: bytes) -> bytes:
    return number.to_bytes(8, "big") + content


def connect(url: str, query: str = "", **options):
    address = f"{url.replace('http', 'ws', 1)}/v1/stream{query}"
    return websockets.connect(address, open_timeout=TIMEOUT_S, proxy=None, **options)


async def answers_to(url: str, *messages: bytes | str, query: str = "", **options):
    """Return the answers to messages, then the code of the closing."""
    found = []
    async with connect(url, query, **options) as socket:
        # A stream may be refused before all is sent; its answers have the reason.
        with contextlib.suppress(websockets.ConnectionClosed):
            for message in messages:
                await socket.send(message)
        try:
            while True:
                found.append(json.loads(await asyncio.wait_for(socket.recv(), TIMEOUT_S)))
        except websockets.ConnectionClosed:
            return found, socket.close_code


async def test_frames_are_answered_in_order_until_the_end(url, photo):
    frames = [frame(number, photo) for number in range(1, 6)]
    answers, code = await answers_to(url, *frames, '{"end": true}', query="?top_k=2")
    assert [one["frameId"] for one in answers] == [1, 2, 3, 4, 5]
    assert all(len(one["result"]["classification"]["categories"]) == 2 for one in answers)
    assert code == 1000


async def test_a_bad_frame_is_answered_and_the_stream_continues(url, photo):
    frames = [frame(1, photo), frame(2, b"no image"), frame(3, photo)]
    answers, code = await answers_to(url, *frames, '{"end": true}')
    assert ["error" in one for one in answers] == [False, True, False]
    assert answers[1]["error"]["field"] == "image.encoded"
    assert code == 1000


async def test_latest_drops_frames_and_answers_the_last(url, photo):
    frames = [frame(number, photo) for number in range(1, 201)]
    answers, code = await answers_to(url, *frames, '{"end": true}', query="?delivery=latest")
    assert sorted(one["frameId"] for one in answers) == list(range(1, 201))
    assert "result" in next(one for one in answers if one["frameId"] == 200)
    dropped = [one for one in answers if "dropped" in one]
    assert all(one["dropped"]["replacedByFrameId"] > one["frameId"] for one in dropped)
    assert code == 1000


@pytest.mark.parametrize(
    ("query", "message", "field"),
    [
        ("", b"short", "message"),
        ("", "no json", "message"),
        ("", '{"token": 1}', "token"),
        ("", '{"tokens": "x"}', "token"),
        ("", "[" * 4000, "message"),
        ("?top_k=x", frame(1, b"x"), "top_k"),
        ("?task=detect", frame(1, b"x"), "task"),
        ("?delivery=newest", frame(1, b"x"), "delivery"),
        ("?l2_normalize=true", frame(1, b"x"), "l2_normalize"),
        ("?variant=pets", frame(1, b"x"), "options.variant"),
    ],
)
async def test_a_wrong_message_ends_the_stream_and_names_the_field(url, query, message, field):
    answers, code = await answers_to(url, message, query=query)
    assert answers[-1]["error"]["field"] == field
    assert code == 1008


async def test_numbers_that_do_not_increase_end_the_stream(url, photo):
    answers, code = await answers_to(url, frame(5, photo), frame(5, photo))
    assert answers[-1]["error"]["code"] == "INVALID_ARGUMENT"
    assert code == 1008


async def test_a_text_after_the_first_message_is_refused(url, photo):
    answers, code = await answers_to(url, frame(1, photo), '{"token": "x"}')
    assert answers[-1]["error"]["field"] == "message"
    assert code == 1008


async def test_a_frame_above_the_message_limit_closes(url):
    _, code = await answers_to(url, frame(1, bytes(5 * 2**20)))
    assert code == 1009


async def test_endless_fragments_close(url):
    async with connect(url) as socket:
        with pytest.raises(websockets.ConnectionClosed):
            await socket.send(b"" for _ in range(10_000))
            await asyncio.wait_for(socket.recv(), TIMEOUT_S)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://[", "http://a]b"])
async def test_pages_of_other_origins_may_not_open_a_stream(url, photo, origin):
    answers, code = await answers_to(url, frame(1, photo), origin=origin)
    assert answers[-1]["error"]["field"] == "origin"
    assert code == 1008


async def test_pages_of_the_gateway_may_open_a_stream(url, photo):
    own = await answers_to(url, frame(1, photo), '{"end": true}', origin=url)
    assert own[1] == 1000


async def test_a_stream_ends_at_the_server_when_its_client_disconnects(url, photo):
    # More streams than a client may have open at once, one after the other.
    for _ in range(40):
        async with connect(url) as socket:
            await socket.send(frame(1, photo))
            await asyncio.wait_for(socket.recv(), TIMEOUT_S)
            socket.transport.abort()
    limit = time.monotonic() + TIMEOUT_S
    while time.monotonic() < limit:
        answers, code = await answers_to(url, frame(1, photo), '{"end": true}')
        if "result" in answers[0]:
            assert code == 1000
            return
    raise AssertionError("streams of clients that have disconnected still count")


async def test_streams_of_one_client_are_limited(url, photo):
    async with contextlib.AsyncExitStack() as stack:
        limit = time.monotonic() + TIMEOUT_S
        while time.monotonic() < limit:
            socket = await stack.enter_async_context(connect(url))
            with contextlib.suppress(websockets.ConnectionClosed):  # refused
                await socket.send(frame(1, photo))
            answer = json.loads(await asyncio.wait_for(socket.recv(), TIMEOUT_S))
            if "result" not in answer:
                break
    assert answer["error"]["code"] == "RESOURCE_EXHAUSTED"
    assert answer["error"]["limit"] == 16
