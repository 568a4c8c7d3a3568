"""Errors of the APIs that take images within JSON, each in its protocol's own form."""

from __future__ import annotations

import base64
import json

import pytest

URI = "data:image/jpeg;base64,"


@pytest.fixture(scope="module")
def server_arguments():
    return ("--variants", "IMAGENET1K_V2", "--engine", "null", "--oip")


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"input": "http://example.com/a.jpg"}, "input"),
        ({"input": [{"image": "https://example.com/a.jpg"}]}, "input[0].image"),
        ({"input": ["file:///etc/passwd"]}, "input[0]"),
        ({"input": ["a photo of a cat"]}, "input[0]"),
        ({"input": [URI + "!!"]}, "input[0]"),
        ({"input": ["data:image/jpeg,abc"]}, "input[0]"),
        ({"input": [{"text": "cat"}]}, "input[0]"),
        ({"input": [[1, 2, 3]]}, "input[0]"),
        ({"input": []}, "input"),
        ({"model": 5, "input": URI}, "model"),
        ({"model": "pets", "input": URI + "eA=="}, "options.variant"),
        ({"input": URI + "eA==", "encoding_format": "int8"}, "encoding_format"),
        ({"input": URI + "eA==", "dimensions": "x"}, "dimensions"),
        ({"input": [URI + "eA=="], "prompt": "x"}, "prompt"),
        ({"input": [URI + "eA=="]}, "input[0]"),
    ],
)
def test_embeddings_names_the_member(http, content, field):
    response = http.post("/v1/embeddings", json=content)
    error = response.json()["error"]
    assert response.status_code in (400, 404)
    assert error["param"] == field
    assert set(error) == {"message", "type", "param", "code"}


def test_dimensions_that_the_vectors_do_not_have_are_refused(http, photo):
    uri = URI + base64.b64encode(photo).decode()
    wrong = http.post("/v1/embeddings", json={"input": uri, "dimensions": 512})
    assert wrong.json()["error"]["param"] == "dimensions"
    right = http.post("/v1/embeddings", json={"input": uri, "dimensions": 2048})
    assert len(right.json()["data"][0]["embedding"]) == 2048


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"id": "x"}, "image: must be a text"),
        ({"id": 5, "image": "eA=="}, "id: must be a text"),
        ({"id": "x", "image": "/etc/passwd"}, "image: is neither base64"),
        ({"id": "x", "image": "http://example.com/a.jpg"}, "image: is a URL"),
        ({"id": "x", "image": "eA=="}, "image.encoded: 1 bytes"),
    ],
)
def test_weaviate_gets_its_errors_as_json(http, content, text):
    response = http.post("/vectors", json=content)
    assert response.status_code == 400
    assert response.json()["error"].startswith(text)


def test_weaviate_finds_the_container_ready(http):
    # Weaviate polls both at its start, and its smoke test ends the path with a slash.
    assert http.get("/.well-known/live").status_code == 204
    assert http.get("/.well-known/ready").status_code == 204
    assert http.post("/vectors/", content=b"no json").json()["error"].startswith("body: is no JSON")


def infer(http, content, **headers):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return http.post("/v2/models/resnet50/infer", content=body, headers=headers)


def tensor(**members):
    return {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", **members}]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", "body: is no JSON"),
        (b"[]", "body: must be a JSON object"),
        (b'{"inputs": [[[[[[[[[[[]]]]]]]]]]]}', "inputs[0]: must be an object"),
        ({"inputs": 5}, "inputs: must be a list"),
        ({"inputs": [5]}, "inputs[0]: must be an object"),
        ({}, "inputs: has 0 tensors"),
        ({"model": "x"}, "model: is no member here"),
        ({"id": 5}, "id: must be a text"),
        (tensor(shape=["a"]), "inputs[0].shape: must be a list of whole numbers"),
        (tensor(shape=[-1]), "inputs[0].shape: must be a list of whole numbers"),
        (tensor(datatype=5), "inputs[0].datatype: must be a text"),
        (tensor(datatype="INT64", data=[1]), "inputs[0].datatype: is 'INT64'"),
        (tensor(data=["http://x/y"]), "inputs[0].data[0]: is a URL"),
        (tensor(data=["a", "b"]), "inputs[0].data: has 2 elements"),
        (tensor(data=[5]), "inputs[0].data[0]: must be a text"),
        (tensor(data=["eA=="]), "inputs[0][0]: 1 bytes"),
        (tensor(datatype="UINT8", data=[300]), "inputs[0].data[0]: must be a whole number"),
        (tensor(datatype="UINT8", data=[True]), "inputs[0].data[0]: must be a number"),
        (tensor(datatype="FP32", data=["1"]), "inputs[0].data[0]: must be a number"),
        (tensor(datatype="FP32", data=[[[[[[[[[1]]]]]]]]]), "inputs[0].data: has lists within"),
        (tensor(parameters={"binary_data_size": 5}), "inputs[0].parameters.binary_data_size: is 5"),
        (tensor(data=[], parameters={"a": []}), "inputs[0].parameters.a: must be a text"),
        (
            tensor(parameters={"shared_memory_region": "x"}),
            "inputs[0].parameters.shared_memory_region: is not supported",
        ),
        (
            {**tensor(data=["eA=="]), "outputs": [{"name": "LOGITS"}]},
            "outputs[0].name: is 'LOGITS'",
        ),
    ],
)
def test_open_inference_names_the_member(http, content, text):
    response = infer(http, content)
    assert response.status_code == 400
    assert response.json()["error"].startswith(text), response.json()


def test_the_length_of_the_json_is_checked(http):
    for length in ("-1", "x", "99999", "9" * 30):
        response = infer(http, b"{}", **{"inference-header-content-length": length})
        assert response.status_code == 400
    response = infer(http, b"{}abc", **{"inference-header-content-length": "2"})
    assert "3 bytes behind its JSON" in response.json()["error"]


def test_a_flood_of_lists_is_refused_before_it_is_parsed(http):
    response = infer(http, b'{"inputs": [' + b"[]," * 500_000 + b"[]]}")
    assert response.json()["error"].startswith("body: has ")


def test_a_body_of_json_has_a_limit_of_its_own(http):
    response = http.post("/vectors", content=b" " * (17 * 2**20))
    assert response.status_code == 413
    assert "max_json_bytes" in response.json()["error"]


def test_without_oip_the_reason_is_given(address, photo):
    from tests.support.gateways import client, gateway
    from tests.support.serving import server_processes

    with server_processes() as start:
        other = start("--variants", "IMAGENET1K_V2", "--engine", "null").wait_until_listening()
        with gateway(other) as url, client(url) as http:
            response = http.get("/v2/health/ready")
    assert response.status_code == 501
    assert "--oip" in response.json()["error"]


def test_metadata_of_open_inference(http):
    assert http.get("/v2").json()["name"]
    # KServe's client parses these answers.
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/v2/models/resnet50/ready").status_code == 200
    model = http.get("/v2/models/IMAGENET1K_V2/versions/1").json()
    assert model["inputs"][0]["shape"][0] == -1
    assert http.get("/v2/models/resnet50/config").json()["max_batch_size"] > 0
    assert http.get("/v2/models/stats").json()["model_stats"]
    assert http.post("/v2/repository/index").json()[0]["state"] == "READY"
    assert http.get("/v2/models/pets").status_code == 404
    assert http.post("/v2/repository/models/pets/load").status_code == 403


@pytest.mark.parametrize("path", ["/v1/embeddings", "/vectors", "/v2/models/resnet50/infer"])
def test_half_a_surrogate_pair_is_refused(http, path):
    response = http.post(path, content=b'{"input": "x", "id": "\\ud800", "\\ud800": 1}')
    assert response.status_code == 400
    assert b"body: is no JSON" in response.content


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/trace/setting", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("GET", "/v2/models/resnet50/infer", 405),
    ],
)
def test_paths_below_v2_have_errors_of_the_protocol(http, method, path, status):
    response = http.request(method, path)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
