"""Arguments that both clients reject before a call begins, without a server."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet50_client import (
    AsyncClient,
    CallObserver,
    InvalidRequestError,
    RawImage,
    RetryPolicy,
    VideoFrame,
)
from resnet50_client.admin import AdminClient, AsyncAdminClient
from tests.support.clients import KINDS
from tests.support.pictures import encode, photo_like

NOWHERE = "127.0.0.1:1"
RGB = np.asarray(photo_like(32, 24))
PNG = encode(Image.fromarray(RGB))
MANY = ["classify_many", "embed_many", "classify_stream", "embed_stream"]
SINGLE = ["classify", "embed"]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def client(request):
    """Give a client whose calls would fail, which none here gets to."""
    return request.param(NOWHERE)


class UnreadSource:
    """Images that are not accepted."""

    def __iter__(self):
        raise AssertionError("the source was read")


ONE_IMAGE = {
    "str": "cat.jpg",
    "path": Path("cat.jpg"),
    "bytes": PNG,
    "bytearray": bytearray(PNG),
    "memoryview": memoryview(PNG),
    "file": io.BytesIO(PNG),
    "PIL image": Image.fromarray(RGB),
    "array": RGB,
    "grey array": RGB[:, :, 0],
    "array of floats": RGB / 255,
    "tensor": torch.zeros(3, 24, 32, dtype=torch.uint8),
    "video frame": VideoFrame(RGB, None, 0.0, 0),
    "raw image": RawImage(RGB, "RGB"),
}


@pytest.mark.parametrize("one", ONE_IMAGE)
def test_single_image_where_many_are_expected_is_refused(client, one):
    for method in MANY:
        name = "images" if method.endswith("many") else "frames"
        with pytest.raises(TypeError, match=rf"^{name}: is one image \(.*\[image\].*classify"):
            getattr(client, method)(ONE_IMAGE[one])


@pytest.mark.parametrize("method", MANY)
def test_what_cannot_be_iterated_is_refused_at_the_call(client, method):
    for wrong in (None, 7, object()):
        with pytest.raises(TypeError, match="must be an iterable of images"):
            getattr(client, method)(wrong)


async def endless():
    while True:
        yield PNG


def test_asynchronous_source_goes_with_the_asyncio_client():
    blocking, asynchronous = (kind(NOWHERE) for kind in KINDS)
    asynchronous.classify_many(endless())
    with pytest.raises(TypeError, match="AsyncClient"):
        blocking.classify_many(endless())


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (RGB[None], {}),
        (torch.zeros(2, 3, 24, 32, dtype=torch.uint8), {}),
        (np.zeros((2, 36, 32), np.uint8), {"pixel_format": "NV12"}),
        (np.array(["a.jpg", "b.jpg"]), {}),
        (np.array([PNG, "b.jpg"], dtype=object), {}),
        (["a.jpg"], {}),
        ({"a.jpg": 1}.keys(), {}),
        (iter([]), {}),
    ],
    ids=lambda one: type(one).__name__,
)
def test_batches_and_iterables_of_images_are_many(client, images, options):
    client.classify_many(images, **options)


def test_planar_frame_alone_is_one_image(client):
    with pytest.raises(TypeError, match="a batch has 3 axes"):
        client.classify_many(np.zeros((36, 32), np.uint8), pixel_format="NV12")


EVERYWHERE = {
    "background": ["red", "#fff", "", 3],
    "pixel_format": ["rgb", "HSV", 3],
}
CLASSIFYING = {
    "variant": ["", 3],
    "top_k": [0, -1, 2.5, True, "3", 2**40],
    "min_probability": [-0.1, 1.1, math.nan, True, "much"],
}
OF_MANY = {
    "max_in_flight": [0, -1, 2.5, True, "32", 2**40],
    "timeout_s": [0, -1, math.nan, True, "3"],
    "ordered": ["no", None, 1],
    "return_exceptions": ["raise", None, 1],
    "keyed": ["", None, 0],
}
OF_STREAMS = {
    "delivery": ["Ordered", "", None, 1],
    "window": [0, -1, 2.5, True, "32", 2**40],
    "resume_s": [-1, math.nan, True, "3"],
}
EMBEDDING = {"variant": ["", 3], "dtype": ["float64", "", None, np.float32]}
OF_EVERY_CALL = {
    "priority": ["Bulk", "", 3],
    "caller_key": ["", "a\nb", 3],
    "request_id": ["", "a b", "a" * 129, 3],
}
SINGLE_ONLY = {"timeout_s": [0, -1, math.nan, True, "3"]}


def cases():
    for method in MANY + SINGLE:
        options = OF_EVERY_CALL | (CLASSIFYING if method.startswith("classify") else EMBEDDING)
        if method in MANY:
            options |= EVERYWHERE | (OF_MANY if method.endswith("many") else OF_STREAMS)
        if method.endswith("many"):
            del options["request_id"]  # each call has one of its own
        for name, values in options.items():
            yield method, name, values


@pytest.mark.parametrize(("method", "name", "values"), list(cases()))
async def test_wrong_option_is_refused_at_the_call(client, method, name, values):
    """The message names the option, its value, and what it may be."""
    for value in values:
        source = UnreadSource() if method in MANY else PNG
        with pytest.raises(ValueError, match=rf"{name}: is .*must be") as refused:
            await getattr(client, method)(source, **{name: value})  # awaited with one answer only
        assert repr(value) in str(refused.value)
        if name not in ("priority", "caller_key"):
            fields = (name, f"options.{name}", f"config.{name}", "options.type")
            assert isinstance(refused.value, InvalidRequestError)
            assert refused.value.field in fields


@pytest.mark.parametrize("value", SINGLE_ONLY["timeout_s"])
async def test_wrong_timeout_is_refused(client, value):
    for method in ("classify", "embed", "health", "list_variants", "wait_until_ready"):
        arguments = [PNG] if method in SINGLE else []
        with pytest.raises(InvalidRequestError, match=r"timeout_s: is .*number of seconds above 0"):
            await getattr(client, method)(*arguments, timeout_s=value)
    with pytest.raises(InvalidRequestError, match="timeout_s: is"):
        type(client)(NOWHERE, timeout_s=value)


@pytest.mark.parametrize("value", ["rgb", "HSV"])
async def test_unknown_pixel_format_of_one_image_is_refused(client, value):
    for image in (RGB, PNG):
        with pytest.raises(InvalidRequestError, match=r"pixel_format: is .*RGB, BGR, RGBA, GRAY"):
            await client.classify(image, pixel_format=value)


async def test_retries_that_are_no_policy_are_refused(client):
    says = r"retry: is 3, must be a RetryPolicy, e\.g\. RetryPolicy\(attempts=3\)"
    with pytest.raises(ValueError, match=says):
        client.with_options(retry=3)
    with pytest.raises(ValueError, match=says):
        type(client)(NOWHERE, retry=3)


async def test_single_observer_is_refused(client):
    with pytest.raises(ValueError, match=r"^observers: is .*, must be a list"):
        type(client)(NOWHERE, observers=CallObserver())


async def test_count_above_the_contracts_is_refused_with_the_limit(client):
    with pytest.raises(InvalidRequestError, match="top_k: is 4294967296, must be at most 42949672"):
        client.classify_many(["a.jpg"], top_k=2**32)


async def test_integers_of_numpy_are_integers(client):
    client.classify_many(["a.jpg"], top_k=np.int64(3), max_in_flight=np.int32(4))


@pytest.mark.parametrize("value", [3, "\ud800"], ids=repr)
async def test_name_that_is_no_text_is_refused_in_every_method(client, value):
    admin = (AsyncAdminClient if type(client) is AsyncClient else AdminClient)(NOWHERE)
    for method, arguments, name in (
        ("get_variant", [value], "name"),
        ("load_variant", [value], "name"),
        ("unload_variant", [value], "name"),
        ("set_default_variant", [value], "name"),
        ("set_traffic_split", [value, "b"], "split.variant"),
        ("set_traffic_split", ["a", value], "split.candidate"),
        ("delete_traffic_split", [value], "variant"),
        ("health", [value], "service"),
    ):
        with pytest.raises(InvalidRequestError, match=f"^{name}: ") as refused:
            await getattr(admin, method)(*arguments)
        assert refused.value.field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("attempts", value) for value in (0, 2.5, True, "3")),
        *(("overload_attempts", value) for value in (0, True, "3", None)),
        *(("initial_backoff_s", value) for value in (math.nan, True, "1")),
        *(("max_backoff_s", value) for value in (math.nan, "1", None)),
    ],
)
def test_wrong_retry_policy_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: is .*must be") as refused:
        RetryPolicy(**{name: value})
    assert repr(value) in str(refused.value)
