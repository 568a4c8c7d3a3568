"""The description, /openapi.json, and the commands of curl on it and on the how-to page."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from openapi_spec_validator import validate

from resnet50_gateway.openapi import description
from tests.support.gateways import client, gateway
from tests.support.serving import server_processes
from tests.support.tutorials import ROOT, blocks

ADDRESS = "http://127.0.0.1:8080"
PAGE = ROOT / "docs" / "how-to" / "http.md"
OF_PAGE = [
    block.text
    for block in blocks(PAGE)
    if block.language == "sh" and block.text.startswith("curl ")
]
OF_DESCRIPTION = [
    operation["x-curl"]
    for methods in description()["paths"].values()
    for operation in methods.values()
    if "x-curl" in operation
]
# Errors are failures, and have no progress bar.
CURL = 'set -e; curl() { command curl --silent --show-error --fail-with-body "$@"; }\n'
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a gateway with live figures."""
    with server_processes() as start:
        process = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null", "--oip"),
            *("--metrics-listen", "127.0.0.1:0", "--no-listen-while-loading"),
        )
        address = process.wait_until_listening()
        metrics = f"{process.process.stdout.readline().split()[-1]}/metrics"
        with gateway(address, options=("--metrics", metrics)) as found:
            yield found


@pytest.fixture
def run(url, tmp_path, photo):
    """Return a function that runs commands in a folder with two photos."""
    for name in ("cat.jpg", "dog.jpg"):
        (tmp_path / name).write_bytes(photo)

    def run(commands: str) -> str:
        assert ADDRESS in commands
        done = subprocess.run(
            ["bash", "-c", CURL + commands.replace(ADDRESS, url)],
            cwd=tmp_path,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "TOKEN": "a" * 48, "no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_description_is_valid_openapi():
    validate(description())


def test_page_and_description_have_commands():
    assert len(OF_PAGE) >= 5
    assert len(OF_DESCRIPTION) >= 5


@pytest.mark.parametrize("commands", OF_PAGE, ids=range(len(OF_PAGE)))
def test_commands_of_the_page_run_as_printed(run, tmp_path, commands):
    run(commands)
    vectors = tmp_path / "cat.f32"
    assert vectors.exists() == ("cat.f32" in commands)
    if vectors.exists():
        assert np.fromfile(vectors, "<f4").shape == (2048,)


@pytest.mark.parametrize("command", OF_DESCRIPTION)
def test_commands_of_the_description_run_as_printed(run, command):
    if "/v1/live" in command:  # endless
        assert run(f"{command} | head -n 1").startswith("data: {")
    else:
        run(command)


def strict(schema: Any) -> Any:
    """Return a schema that allows no members but those that it describes."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(value) for name, value in schema.items()}
    if found.get("type") == "object" and "properties" in found:
        found["additionalProperties"] = False
    return found


@pytest.mark.parametrize(
    ("method", "path", "request_of", "status"),
    [
        ("POST", "/v1/classify", {"params": {"include_embedding": "true"}}, 200),
        ("POST", "/v1/classify", {"content": b"no image"}, 400),
        ("POST", "/v1/classify:batch", {"files": 2}, 200),
        ("POST", "/v1/embed", {}, 200),
        ("POST", "/v1/embed:batch", {"files": 2}, 200),
        ("GET", "/v1/variants", {"content": b""}, 200),
        ("POST", "/v1/embeddings", {"json": "input"}, 200),
        ("POST", "/vectors", {"json": "image"}, 200),
    ],
)
def test_answers_have_the_described_members(url, photo, method, path, request_of, status):
    encoded = base64.b64encode(photo).decode()
    bodies = {
        "input": {"model": "resnet50", "input": f"data:image/jpeg;base64,{encoded}"},
        "image": {"id": "1", "image": encoded},
    }
    arguments = copy.copy(request_of)
    if "files" in arguments:
        parts = [("image", (f"{number}.jpg", photo)) for number in range(arguments["files"])]
        arguments["files"] = [*parts, ("image", ("bad.jpg", b"no image"))]
    elif "json" in arguments:
        arguments["json"] = bodies[arguments["json"]]
    else:
        arguments.setdefault("content", photo)
    with client(url) as http:
        response = http.request(method, path, **arguments)
    assert response.status_code == status
    responses = description()["paths"][path][method.lower()]["responses"]
    found = responses.get(str(status))
    if found is None:
        assert responses["default"] == {"$ref": "#/components/responses/Problem"}
        found = description()["components"]["responses"]["Problem"]
    media = response.headers["content-type"].partition(";")[0]
    schema = strict(found["content"][media]["schema"])
    schema["components"] = strict(description()["components"])
    jsonschema.validate(json.loads(response.content), schema)
