"""One image through every API: the same vector."""

from __future__ import annotations

import asyncio
import base64
import io
import json

import grpc
import numpy as np
import pytest
import websockets
from PIL import Image

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_client import Client
from tests.support.gateways import TIMEOUT_S
from tests.support.oip import files_request, rpc, tensors
from tests.support.pictures import encode

EMBED = "/resnet50.v1.InferenceService/Embed"


@pytest.fixture(scope="module")
def server_arguments():
    return ("--variants", "net=random:7", "--engine", "torch", "--device", "cpu", "--oip")


@pytest.fixture(scope="module")
def expected(address, photo) -> np.ndarray:
    """The vector of a unary call over gRPC."""
    with Client(address, timeout_s=TIMEOUT_S) as client:
        vector = client.embed(photo).vector
    assert np.linalg.norm(vector) > 0.1
    return vector


def test_batch_and_stream_over_grpc(address, photo, expected):
    with Client(address, timeout_s=TIMEOUT_S) as client:
        for one in client.embed_many([photo, photo]):
            np.testing.assert_allclose(one.vector, expected, atol=1e-5)
        (answer,) = client.embed_stream([photo])
    np.testing.assert_allclose(answer.result.vector, expected, atol=1e-5)


def embed_request(photo) -> bytes:
    image = image_pb2.Image(encoded=photo)
    return inference_pb2.EmbedRequest(image=image).SerializeToString()


def vector_of(content: bytes) -> np.ndarray:
    response = inference_pb2.EmbedResponse.FromString(content)
    return np.frombuffer(response.embedding.values, "<f4")


def test_rest_as_json_and_as_float32(http, photo, expected):
    as_json = http.post("/v1/embed", content=photo).json()["embedding"]["values"]
    accept = {"accept": "application/octet-stream"}
    raw = np.frombuffer(http.post("/v1/embed", content=photo, headers=accept).content, "<f4")
    batch = http.post("/v1/embed:batch", files=[("image", photo)] * 3).json()["results"]
    np.testing.assert_allclose(as_json, expected, atol=1e-5)
    np.testing.assert_allclose(raw, expected, atol=1e-5)
    for one in batch:
        np.testing.assert_allclose(one["embedding"]["values"], expected, atol=1e-5)


def test_an_image_above_a_message_is_uploaded(http, address, expected):
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    large = encode(Image.fromarray(noise))
    with Client(address, timeout_s=TIMEOUT_S) as client:
        uploaded = client.embed(large).vector
    values = http.post("/v1/embed", content=large).json()["embedding"]["values"]
    np.testing.assert_allclose(values, uploaded, atol=1e-5)


def test_connect_as_protobuf_and_as_json(http, photo, expected):
    proto = http.post(
        EMBED, content=embed_request(photo), headers={"content-type": "application/proto"}
    )
    as_json = http.post(EMBED, json={"image": {"encoded": base64.b64encode(photo).decode()}})
    values = base64.b64decode(as_json.json()["embedding"]["values"])
    np.testing.assert_allclose(vector_of(proto.content), expected, atol=1e-5)
    np.testing.assert_allclose(np.frombuffer(values, "<f4"), expected, atol=1e-5)


@pytest.mark.parametrize("text", [False, True])
def test_grpc_web(http, photo, expected, text):
    message = embed_request(photo)
    framed = b"\0" + len(message).to_bytes(4, "big") + message
    media_type = "application/grpc-web-text" if text else "application/grpc-web+proto"
    response = http.post(
        EMBED,
        content=base64.b64encode(framed) if text else framed,
        headers={"content-type": media_type},
    )
    content = base64.b64decode(response.content) if text else response.content
    length = int.from_bytes(content[1:5], "big")
    np.testing.assert_allclose(vector_of(content[5 : 5 + length]), expected, atol=1e-5)
    assert content[5 + length :] == b"\x80\0\0\0\x10grpc-status: 0\r\n"


def test_websocket(url, photo, expected):
    async def stream():
        address = url.replace("http", "ws", 1) + "/v1/stream?task=embed"
        async with websockets.connect(address, open_timeout=TIMEOUT_S) as socket:
            await socket.send((5).to_bytes(8, "big") + photo)
            return json.loads(await socket.recv())

    answer = asyncio.run(stream())
    assert answer["frameId"] == 5
    np.testing.assert_allclose(answer["result"]["embedding"]["values"], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["3f_0", "search_1700000000000000000"])
def test_weaviate(http, photo, expected, name):
    body = {"id": name, "image": base64.b64encode(photo).decode()}
    # As Weaviate, without a content type.
    answer = http.post("/vectors", content=json.dumps(body).encode()).json()
    assert (answer["id"], answer["dim"]) == (name, 2048)
    np.testing.assert_allclose(answer["vector"], expected, atol=1e-5)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_embedding_clients(http, photo, expected, encoding_format):
    uri = "data:image/jpeg;base64," + base64.b64encode(photo).decode()
    body = {"model": "net", "input": [uri, {"image": uri}], "encoding_format": encoding_format}
    answer = http.post("/v1/embeddings", json=body).json()
    assert [one["index"] for one in answer["data"]] == [0, 1]
    for one in answer["data"]:
        vector = one["embedding"]
        if encoding_format == "base64":
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_open_inference_over_rest_and_grpc(http, address, photo, expected):
    shape = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES"}
    encoded = {**shape, "data": [base64.b64encode(photo).decode()]}
    as_json = http.post("/v2/models/net/infer", json={"inputs": [encoded]}).json()
    outputs = {one["name"]: one["data"] for one in as_json["outputs"]}
    np.testing.assert_allclose(outputs["EMBEDDING"], expected, atol=1e-5)

    element = len(photo).to_bytes(4, "little") + photo
    header = {
        "inputs": [{**shape, "parameters": {"binary_data_size": len(element)}}],
        "outputs": [{"name": "EMBEDDING", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(header).encode()
    response = http.post(
        "/v2/models/net/versions/1/infer",
        content=text + element,
        headers={"inference-header-content-length": str(len(text))},
    )
    length = int(response.headers["inference-header-content-length"])
    binary = np.frombuffer(response.content[length:], "<f4")
    np.testing.assert_allclose(binary, expected, atol=1e-5)

    async def over_grpc_too():
        async with grpc.aio.insecure_channel(address) as channel:
            request = files_request(photo, outputs=("EMBEDDING",), model_name="net")
            return tensors(await rpc(channel, "ModelInfer")(request))["EMBEDDING"][0]

    np.testing.assert_allclose(asyncio.run(over_grpc_too()), expected, atol=1e-5)


def test_a_normalised_tensor_of_json(http, address, photo):
    with Client(address, timeout_s=TIMEOUT_S) as client:
        preprocess = client.preprocessor("net")
        image = preprocess(photo)
        vector = client.embed(image).vector
    transform = preprocess.transform
    crop = np.asarray(image.pixels).reshape(224, 224, 3)
    scaled = (crop / 255 - np.array(transform.mean)) / np.array(transform.std)
    tensor = scaled.astype("<f4").transpose(2, 0, 1)[None]
    given = {"name": "x", "shape": list(tensor.shape), "datatype": "FP32"}
    as_json = {"inputs": [{**given, "data": tensor.ravel().tolist()}]}
    answer = http.post("/v2/models/net/infer", json=as_json).json()
    outputs = {one["name"]: one["data"] for one in answer["outputs"]}
    np.testing.assert_allclose(outputs["EMBEDDING"], vector, atol=1e-5)


def test_uint8_pixels_of_json_and_of_binary_are_the_same(http, photo):
    pixels = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))[None]
    given = {"name": "x", "shape": list(pixels.shape), "datatype": "UINT8"}
    as_json = http.post(
        "/v2/models/net/infer",
        json={
            "inputs": [{**given, "data": pixels.tolist()}],
            "outputs": [{"name": "EMBEDDING"}],
        },
    ).json()
    text = json.dumps(
        {
            "inputs": [{**given, "parameters": {"binary_data_size": pixels.nbytes}}],
            "outputs": [{"name": "EMBEDDING"}],
        }
    ).encode()
    binary = http.post(
        "/v2/models/net/infer",
        content=text + pixels.tobytes(),
        headers={"inference-header-content-length": str(len(text))},
    ).json()
    assert as_json["outputs"][0]["data"] == binary["outputs"][0]["data"]
