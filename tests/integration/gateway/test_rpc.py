"""Methods of the contract over Connect and gRPC-Web."""

from __future__ import annotations

import base64
import json

import pytest
from google.rpc import error_details_pb2, status_pb2

from resnet50.v1 import inference_pb2, variant_pb2

VARIANTS = "/resnet50.v1.VariantService"
INFERENCE = "/resnet50.v1.InferenceService"
UNARY = [
    f"/{service.full_name}/{method.name}"
    for file in (inference_pb2, variant_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.client_streaming
]
STREAMS = [f"{INFERENCE}/{name}" for name in ("ClassifyUpload", "EmbedStream", "ClassifyStream")]


@pytest.mark.parametrize("path", UNARY)
def test_every_method_with_one_request_is_reached(http, path):
    response = http.post(path, json={})
    # Answered by the server: with a response, or with an error that has its request ID.
    if response.status_code != 200:
        kinds = [detail["type"] for detail in response.json()["details"]]
        assert "google.rpc.RequestInfo" in kinds


@pytest.mark.parametrize("path", STREAMS)
def test_streams_are_refused_with_what_to_use(http, path):
    response = http.post(path, json={})
    assert (response.status_code, response.json()["code"]) == (501, "unimplemented")
    assert "/v1/stream" in response.json()["message"]


def test_json_is_that_of_protobuf(http):
    response = http.post(f"{VARIANTS}/GetVariant", json={"name": "DEFAULT"})
    variant = response.json()["variant"]
    assert variant["name"] == "IMAGENET1K_V2"
    assert len(variant["categories"]) == 1000
    assert response.headers["content-type"] == "application/json"


def test_a_connect_error_has_code_and_details(http):
    response = http.post(f"{VARIANTS}/GetVariant", json={"name": "pets"})
    content = response.json()
    assert (response.status_code, content["code"]) == (404, "not_found")
    info = error_details_pb2.ErrorInfo.FromString(
        base64.b64decode(content["details"][0]["value"] + "==")
    )
    assert info.reason == "VARIANT_NOT_FOUND"


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"{", "is no GetVariantRequest as JSON"),
        (b'{"nam": "x"}', 'no field named "nam"'),
        (b'{"name": 5}', "name"),
        (b"[" * 100_000, "is no GetVariantRequest as JSON"),
        (b'{"name": "\xff"}', "is no GetVariantRequest as JSON"),
    ],
)
def test_malformed_json_names_the_member(http, body, part):
    response = http.post(
        f"{VARIANTS}/GetVariant", content=body, headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (400, "invalid_argument")
    assert part in response.json()["message"]
    assert "\n" not in response.json()["message"]


def test_a_deadline_of_connect_reaches_the_server(http, photo):
    body = {"image": {"encoded": base64.b64encode(photo).decode()}}
    late = http.post(f"{INFERENCE}/Classify", json=body, headers={"connect-timeout-ms": "1"})
    assert late.json()["code"] == "deadline_exceeded"
    wrong = http.post(f"{INFERENCE}/Classify", json=body, headers={"connect-timeout-ms": "soon"})
    assert wrong.status_code == 400


def grpc_web(http, path: str, content: bytes, **headers: str):
    headers = {"content-type": "application/grpc-web+proto", **headers}
    return http.post(path, content=content, headers=headers)


def test_a_grpc_web_error_is_in_the_headers(http):
    request = variant_pb2.GetVariantRequest(name="pets").SerializeToString()
    framed = b"\0" + len(request).to_bytes(4, "big") + request
    response = grpc_web(http, f"{VARIANTS}/GetVariant", framed)
    assert (response.status_code, response.headers["grpc-status"]) == (200, "5")
    status = status_pb2.Status.FromString(
        base64.b64decode(response.headers["grpc-status-details-bin"] + "==")
    )
    assert "pets" in status.message
    assert len(status.details) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0\5abc",
        b"\1\0\0\0\0",
        b"\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\0\2\xff\xff",
    ],
)
def test_malformed_grpc_web_is_refused(http, body):
    response = grpc_web(http, f"{VARIANTS}/GetVariant", body)
    assert int(response.headers["grpc-status"]) in (3, 12, 13)


def test_timeouts_of_grpc_web_are_checked(http):
    framed = b"\0\0\0\0\0"
    wrong = grpc_web(http, f"{VARIANTS}/GetVariant", framed, **{"grpc-timeout": "1 minute"})
    assert wrong.headers["grpc-status"] == "3"
    right = grpc_web(http, f"{VARIANTS}/GetVariant", framed, **{"grpc-timeout": "1M"})
    assert "grpc-status" not in right.headers


def test_an_unknown_method_and_media_type_are_named(http):
    unknown = http.post(f"{VARIANTS}/Nothing", json={})
    assert unknown.json()["code"] == "unimplemented"
    wrong = http.post(f"{VARIANTS}/GetVariant", content=b"x", headers={"content-type": "text/xml"})
    assert (wrong.status_code, json.loads(wrong.content)["code"]) == (415, "invalid_argument")
