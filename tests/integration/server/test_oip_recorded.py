"""Requests as public clients of the Open Inference Protocol wrote them; recorded by `make oip`."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from resnet50.oip.messages import SERVICE, message_class
from tests.support.serving import connected, serving

RECORDED: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("oip_requests.json").read_text()
)


@pytest.fixture(scope="module")
def answers() -> list[tuple[str, list[bytes]]]:
    """Code and responses of each call, in their order, from one server."""

    async def replay(channel: grpc.aio.Channel, call: dict[str, Any]) -> tuple[str, list[bytes]]:
        async def requests() -> AsyncIterator[bytes]:
            for request in call["requests"]:
                yield base64.b64decode(request)

        responses = channel.stream_stream(call["method"])(requests())
        found: list[bytes] = []
        try:
            async for response in responses:
                found.append(response)
        except grpc.aio.AioRpcError as error:
            return error.code().name, found
        return "OK", found

    async def replay_all() -> list[tuple[str, list[bytes]]]:
        async with serving(oip=True) as server, connected(server) as channel:
            return [await replay(channel, call) for call in RECORDED]

    return asyncio.run(replay_all())


@pytest.mark.parametrize(
    "index",
    range(len(RECORDED)),
    ids=[f"{call['client']}-{call['method'].rpartition('/')[2]}" for call in RECORDED],
)
def test_recorded_call_is_answered_as_it_was(index, answers):
    call, (code, responses) = RECORDED[index], answers[index]
    assert code == call["code"]
    if code != "OK":
        return
    method = SERVICE.methods_by_name[call["method"].rpartition("/")[2]]
    parsed = [message_class(method.output_type.name).FromString(one) for one in responses]
    assert len(parsed) == (len(call["requests"]) if method.server_streaming else 1)
    if method.name == "ModelInfer":
        assert len(parsed[0].raw_output_contents) == len(parsed[0].outputs) > 0


def test_recorded_calls_are_of_each_client_and_method():
    methods = {call["method"].rpartition("/")[2] for call in RECORDED}
    assert methods >= {method.name for method in SERVICE.methods}
    assert {call["client"] for call in RECORDED} == {"tritonclient", "kserve", "mlserver"}
