"""REST requests as public clients of the Open Inference Protocol wrote them; by `make oip`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

RECORDED: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("oip_requests.json").read_text()
)


@pytest.fixture(scope="module")
def server_arguments():
    return ("--variants", "IMAGENET1K_V2", "--engine", "null", "--oip")


@pytest.mark.parametrize(
    "call", RECORDED, ids=[f"{one['client']}-{one['path'].replace('/', '.')}" for one in RECORDED]
)
def test_recorded_request_is_answered_as_it_was(http, call):
    response = http.request(
        call["method"],
        call["path"],
        content=base64.b64decode(call["body"]),
        headers=call["headers"],
    )
    assert response.status_code == call["status"]
    if response.status_code >= 400 and response.content:
        assert isinstance(response.json()["error"], str)
    elif call["path"].endswith("/infer"):
        length = response.headers.get("inference-header-content-length")
        header = json.loads(response.content[: int(length)] if length else response.content)
        sizes = [one.get("parameters", {}).get("binary_data_size", 0) for one in header["outputs"]]
        assert sum(sizes) == (len(response.content) - int(length) if length else 0)


def test_recorded_requests_are_of_every_client():
    assert {call["client"] for call in RECORDED} == {"tritonclient", "kserve"}
    assert sum(call["path"].endswith("/infer") for call in RECORDED) >= 10
