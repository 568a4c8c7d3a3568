"""`/v1/classify`, `/v1/embed` and their batches."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.support.gateways import problem
from tests.support.pictures import encode, photo_like


def test_a_file_as_body_is_classified(http, photo):
    response = http.post("/v1/classify", params={"top_k": 3}, content=photo)
    assert response.status_code == 200
    assert len(response.json()["classification"]["categories"]) == 3
    assert response.json()["variant"]["name"] == "IMAGENET1K_V2"
    assert isinstance(response.json()["timing"]["totalUs"], int)


def test_a_form_and_a_body_get_the_same_answer(http, photo):
    as_body = http.post("/v1/classify", content=photo).json()
    as_form = http.post("/v1/classify", files={"image": ("a.jpg", photo)}).json()
    assert as_body["classification"] == as_form["classification"]


def test_an_embedding_is_numbers_or_raw_float32(http, photo):
    as_json = http.post("/v1/embed", params={"l2_normalize": "true"}, content=photo).json()
    raw = http.post(
        "/v1/embed",
        params={"l2_normalize": "true"},
        content=photo,
        headers={"accept": "application/octet-stream"},
    )
    vector = np.frombuffer(raw.content, "<f4")
    assert np.array_equal(np.float32(as_json["embedding"]["values"]), vector)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert raw.headers["x-embedding-space"] == as_json["embedding"]["space"]
    assert raw.headers["x-embedding-dimension"] == "2048"


def test_a_float16_embedding_arrives_as_float32(http, photo):
    response = http.post(
        "/v1/embed",
        params={"type": "float16"},
        content=photo,
        headers={"accept": "application/octet-stream"},
    )
    assert len(response.content) == 2048 * 4


def test_a_batch_answers_in_order_with_errors_in_place(http, photo):
    files = [("image", photo), ("image", b"no image"), ("image", photo)]
    results = http.post("/v1/classify:batch", files=files).json()["results"]
    assert ["error" in one for one in results] == [False, True, False]
    assert results[1]["error"]["code"] == "INVALID_ARGUMENT"


def test_a_batch_beyond_one_message_is_answered_in_order(http):
    # Two that share a message, one larger than a message, which is uploaded, and one more.
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    large = encode(Image.fromarray(noise))
    small = encode(photo_like(64, 64))
    assert len(large) > 4 * 2**20
    files = [("image", small), ("image", small), ("image", large), ("image", small)]
    response = http.post("/v1/embed:batch", files=files)
    assert [one["embedding"]["dimension"] for one in response.json()["results"]] == [2048] * 4
    assert response.json()["variant"]["name"] == "IMAGENET1K_V2"


def test_a_large_file_that_is_no_image_is_refused_by_the_server(http):
    response = http.post("/v1/classify", content=bytes(6_000_000))
    found = problem(response)
    assert (found["status"], found["code"]) == (400, "INVALID_ARGUMENT")
    assert "not a readable" in found["detail"] or "are not" in found["detail"]


def test_batch_vectors_are_rows_of_float32(http, photo):
    files = [("image", photo), ("image", photo)]
    accept = {"accept": "application/octet-stream"}
    response = http.post("/v1/embed:batch", files=files, headers=accept)
    assert np.frombuffer(response.content, "<f4").reshape(2, 2048)[0, 0] == 1
    assert response.headers["x-embedding-count"] == "2"


def test_an_array_of_a_batch_fails_as_a_whole(http, photo):
    files = [("image", photo), ("image", b"no image")]
    accept = {"accept": "application/octet-stream"}
    found = problem(http.post("/v1/embed:batch", files=files, headers=accept))
    assert (found["status"], found["field"]) == (400, "image[1]")


@pytest.mark.parametrize(
    ("path", "request_", "status", "field"),
    [
        ("/v1/classify?topk=3", {"content": b"x"}, 400, "topk"),
        ("/v1/classify?top_k=x", {"content": b"x"}, 400, "top_k"),
        ("/v1/classify?top_k=1&top_k=2", {"content": b"x"}, 400, "top_k"),
        ("/v1/classify?include_embedding=yes", {"content": b"x"}, 400, "include_embedding"),
        ("/v1/embed?type=float64", {"content": b"x"}, 400, "type"),
        ("/v1/classify", {"content": b""}, 400, "body"),
        ("/v1/classify", {"content": b"no image"}, 400, "image.encoded"),
        ("/v1/classify?variant=pets", {"content": b"x"}, 404, "options.variant"),
        ("/v1/classify?top_k=2000", {"content": b"x"}, 400, "options.top_k"),
        ("/v1/classify", {"files": {"photo": b"x"}}, 400, "body"),
        ("/v1/classify", {"files": {"image": b""}}, 400, "image[0]"),
        ("/v1/classify", {"files": [("image", b"x"), ("image", b"y")]}, 400, "body"),
        ("/v1/classify", {"json": {"image": "x"}}, 415, "content-type"),
        ("/v1/classify", {"content": b"x", "headers": {"x-timeout-ms": "0"}}, 400, "x-timeout-ms"),
        (
            "/v1/classify",
            {"content": b"x", "headers": {"content-encoding": "gzip"}},
            415,
            "content-encoding",
        ),
        (
            "/v1/classify",
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            400,
            "content-type",
        ),
        (
            "/v1/classify",
            {"content": b"--a\r\n", "headers": {"content-type": "multipart/form-data; boundary=a"}},
            400,
            "body",
        ),
    ],
)
def test_a_bad_request_names_its_field(http, path, request_, status, field):
    found = problem(http.post(path, **request_))
    assert (found["status"], found["field"]) == (status, field)


def test_a_form_with_too_many_parts_is_refused(http):
    files = [("image", b"x")] * 129
    found = problem(http.post("/v1/classify:batch", files=files))
    assert (found["field"], found["limit"]) == ("body", 128)


def test_an_unknown_path_is_a_problem(http):
    assert problem(http.get("/v2x"))["code"] == "NOT_FOUND"
    assert problem(http.get("/v1/classify"))["status"] == 405


def test_the_request_id_of_the_client_is_kept(http, photo):
    response = http.post("/v1/classify", content=photo, headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"


def test_variants_are_listed(http):
    variants = http.get("/v1/variants").json()["variants"]
    assert variants[0]["name"] == "IMAGENET1K_V2"
    assert variants[0]["state"] == "VARIANT_STATE_READY"


def test_health_and_readiness(http):
    assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").status_code == 200
