"""The description, /openapi.json, and the commands of curl on it and on the how-to page."""

from __future__ import annotations

import base64
import copy
import json
import re
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


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield method and path, and the operation, of all operations."""
    for path, methods in description()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield media types and schemas of an operation's bodies, of requests and of responses."""
    for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
        for media_type, content in resolved(holder).get("content", {}).items():
            yield media_type, content["schema"]


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """Return the component that a reference names."""
    if "$ref" not in node:
        return node
    kind, name = node["$ref"].removeprefix("#/components/").split("/")
    return description()["components"][kind][name]


# The following are faults that made generated clients useless; `make openapi-clients` generates.


def test_operations_have_ids_of_their_own():
    ids = [operation["operationId"] for _, operation in operations()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9]+", one) for one in ids)


def test_tokens_are_a_security_scheme():
    # OpenAPI ignores such header parameters, so clients would send no token.
    ignored = {"authorization", "accept", "content-type"}
    for name, operation in operations():
        for parameter in map(resolved, operation.get("parameters", ())):
            assert parameter["in"] != "header" or parameter["name"].lower() not in ignored, name
    assert description()["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert {"token": []} in description()["security"]


def test_files_are_binary():
    for name, operation in operations():
        for media_type, schema in contents(operation):
            found = resolved(schema)
            if media_type == "multipart/form-data":
                (part,) = found["properties"].values()
                found = part.get("items", part)
            elif media_type != "application/octet-stream":
                continue
            assert (found["type"], found["format"]) == ("string", "binary"), name


def test_media_types_are_no_ranges():
    for name, operation in operations():
        for media_type, _ in contents(operation):
            assert "*" not in media_type, name


def test_enums_are_components():
    # An enum within an operation becomes a type for each operation.
    for parameter in description()["components"]["parameters"].values():
        assert "enum" not in parameter["schema"]


def test_responses_say_which_members_they_have():
    for name, operation in operations():
        if name.endswith(("load", "{method}")):  # {}, and messages of the protos
            continue
        for response in map(resolved, operation["responses"].values()):
            for media_type, content in response.get("content", {}).items():
                if media_type.endswith("json"):
                    assert has_members(content["schema"]), name


def has_members(schema: dict[str, Any]) -> bool:
    """Return whether a client knows the members of an answer."""
    found = resolved(schema)
    if "anyOf" in found:
        return all(map(has_members, found["anyOf"]))
    if found["type"] == "array":
        return has_members(found["items"])
    return bool(found["properties"]) and bool(found["required"])


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


def responses_of(method: str, path: str) -> dict[str, Any]:
    """Return the described responses of a method and a path; the first template wins."""
    for template, methods in description()["paths"].items():
        if re.fullmatch(re.sub(r"\{[a-z]+\}", "[^/]+", template), path):
            found: dict[str, Any] = methods[method.lower()]["responses"]
            return found
    raise AssertionError(path)


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
        ("POST", "/v1/embeddings", {"content": b"{}"}, 400),
        ("POST", "/vectors", {"json": "image"}, 200),
        ("POST", "/vectors", {"content": b"{}"}, 400),
        ("GET", "/v2", {"content": b""}, 200),
        ("GET", "/v2/health/live", {"content": b""}, 200),
        ("GET", "/v2/health/ready", {"content": b""}, 200),
        ("GET", "/v2/models/stats", {"content": b""}, 200),
        ("GET", "/v2/models/resnet50", {"content": b""}, 200),
        ("GET", "/v2/models/resnet50/config", {"content": b""}, 200),
        ("GET", "/v2/models/resnet50/versions/1/stats", {"content": b""}, 200),
        ("GET", "/v2/models/pets", {"content": b""}, 404),
        ("POST", "/v2/repository/index", {"content": b""}, 200),
        ("POST", "/v2/models/resnet50/infer", {"json": "tensor"}, 200),
        ("POST", "/v2/models/resnet50/infer", {"content": b"{}"}, 400),
        ("POST", "/resnet50.v1.InferenceService/Embed", {"json": "nothing"}, 400),
    ],
)
def test_answers_have_the_described_members(url, photo, method, path, request_of, status):
    encoded = base64.b64encode(photo).decode()
    bodies = {
        "input": {"model": "resnet50", "input": f"data:image/jpeg;base64,{encoded}"},
        "image": {"id": "1", "image": encoded},
        "tensor": {
            "inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [encoded]}],
        },
        "nothing": {},
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
    responses = responses_of(method, path)
    found = resolved(responses.get(str(status), responses["default"]))
    media = response.headers["content-type"].partition(";")[0]
    schema = strict(found["content"][media]["schema"])
    schema["components"] = strict(description()["components"])
    jsonschema.validate(json.loads(response.content), schema)
