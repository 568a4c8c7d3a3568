"""Workers without a server: results of a server, bad images alone, bounded reading."""

from __future__ import annotations

import asyncio
import io
import itertools
import subprocess
import sys
import threading
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from resnet50_client import AsyncClient
from resnet50_server.batching.result import Result
from resnet50_server.engines.stub_engines import NullEngine
from resnet50_server.errors import InvalidImage
from resnet50_server.offline import (
    ImageWorker,
    LocalEmbedder,
    RayWorkers,
    WorkerFailed,
    classify,
    embed,
)
from resnet50_server.offline.in_flight import InFlight
from tests.support.counted_engine import counted_engine
from tests.support.offline import BROKEN
from tests.support.pictures import encode, photo_like
from tests.support.serving import serving

JPEG = encode(photo_like(64, 48), "JPEG")
NULL = {"engine": "null", "max_batch_size": 4}
TORCH = {"engine": "torch", "device": "cpu", "max_batch_size": 1}


@pytest.fixture
def engine(monkeypatch):
    yield from counted_engine(monkeypatch)


def transparent() -> Image.Image:
    image = photo_like(80, 60).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


@pytest.mark.parametrize(("l2_normalize", "background"), [(False, None), (True, "white")])
async def test_vectors_are_the_served_ones_bit_for_bit(l2_normalize, background):
    images = {
        "large.jpg": encode(photo_like(400, 300), "JPEG"),
        "grey.png": encode(photo_like(300, 300).convert("L"), "PNG"),
        "alpha.png": encode(transparent(), "PNG"),
        "small.webp": encode(photo_like(31, 200), "WEBP"),
    }
    variant = "one=random:1"
    async with (
        serving(variants=[variant], **TORCH) as server,
        AsyncClient(server.addresses[0]) as client,
    ):
        served = {
            name: await client.embed(image, l2_normalize=l2_normalize, background=background)
            for name, image in images.items()
        }
        found = await client.get_variant()
    with closing(
        LocalEmbedder(variant, l2_normalize=l2_normalize, background=background, **TORCH)
    ) as embedder:
        local = dict(embedder(images.items()))
    assert local.keys() == served.keys()
    for name, one in served.items():
        assert local[name].vector.tobytes() == one.vector.tobytes(), name
        assert (embedder.provenance.space, embedder.provenance.variant) == (one.space, "one")
    assert embedder.provenance.digest == found.digest
    assert embedder.provenance.transform == found.transform.digest
    assert embedder.provenance.dimension == found.embedding_dimension


def test_bad_images_fail_alone_and_reach_no_engine(engine, tmp_path):
    (tmp_path / "big.bmp").write_bytes(JPEG + bytes(2**20))
    (tmp_path / "pixels.png").write_bytes(encode(Image.new("RGB", (2000, 1000)), "PNG"))
    (tmp_path / "good.jpg").write_bytes(JPEG)
    images = {
        "missing": str(tmp_path / "missing.jpg"),
        "folder": tmp_path,
        "big": tmp_path / "big.bmp",
        "pixels": str(tmp_path / "pixels.png"),
        "empty": b"",
        "broken": BROKEN,
        "file": str(tmp_path / "good.jpg"),
        "bytes": JPEG,
        "open": io.BytesIO(JPEG),
    }
    limits = {"max_image_bytes": 2**20, "max_image_pixels": 10**6}
    with ImageWorker(**NULL, **limits) as worker:
        found = dict(worker.run(images.items(), top_k=2))
    good = [name for name, one in found.items() if isinstance(one, Result)]
    assert sorted(good) == ["bytes", "file", "open"]
    assert engine.total == 3
    assert isinstance(found["missing"], FileNotFoundError)
    assert isinstance(found["folder"], IsADirectoryError)
    for name, words in {
        "big": "the limit (max_image_bytes)",
        "pixels": "the limit (max_image_pixels)",
        "empty": "has 0 bytes",
        "broken": "image.encoded",
    }.items():
        assert isinstance(found[name], InvalidImage)
        assert words in str(found[name])


def test_results_have_categories_or_embeddings_as_asked():
    with ImageWorker(**NULL) as worker:
        ((_, one),) = worker.run([("a", JPEG)], top_k=3, with_embedding=False)
        assert (one.indices.shape, one.embedding) == ((3,), None)
        ((_, two),) = worker.run([("a", JPEG)])
        assert (two.indices.shape, two.embedding.shape) == ((0,), (2048,))


def test_images_are_taken_two_batches_ahead_at_most():
    taken = itertools.count()

    def images():
        while True:
            yield str(next(taken)), JPEG

    with ImageWorker(**NULL) as worker:
        results = worker.run(images())
        for _ in range(20):
            next(results)
        results.close()
        assert 20 <= next(taken) <= 20 + worker.window
        assert worker.window >= 8


def test_bytes_in_flight_are_bounded(engine):
    engine.hold_at = 0
    taken = []

    def images():
        for number in range(8):
            taken.append(number)
            if number == 2:  # there is no room for it yet
                engine.go.set()
            yield str(number), JPEG

    with ImageWorker(**NULL, max_request_bytes=2 * len(JPEG)) as worker:
        before = [(len(taken), name) for name, _ in worker.run(images())]
    assert {name for _, name in before} == {str(number) for number in range(8)}
    assert all(count <= done + 3 for done, (count, _) in enumerate(before))


def test_bytes_of_ended_images_are_in_flight_no_longer():
    async def infer(name, image):
        return name

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        in_flight = InFlight(loop, infer)
        in_flight.start("a", b"12", 2)
        in_flight.start("b", b"123", 3)
        assert (in_flight.images, in_flight.bytes) == (2, 5)
        names = []
        while in_flight.images:
            names += [name for name, _ in in_flight.ended()]
        assert (names, in_flight.bytes) == (["a", "b"], 0)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_stopped_engine_ends_the_work_with_its_reason(monkeypatch):
    def fail(*_):
        raise RuntimeError("the device is gone")

    with ImageWorker(**NULL) as worker:
        monkeypatch.setattr(NullEngine, "run", fail)
        with pytest.raises(WorkerFailed, match=r"fail"):
            for _ in worker.run((str(number), JPEG) for number in range(10_000)):
                pass


HANGING = """
import threading
from resnet50_server.engines.stub_engines import NullEngine
from resnet50_server.offline import ImageWorker, WorkerFailed

with ImageWorker(engine="null", engine_timeout_s=0.2) as worker:
    NullEngine.run = lambda *_: threading.Event().wait()
    try:
        list(worker.run([("a", open(0, "rb").read())]))
    except WorkerFailed as error:
        print("failed:", error, flush=True)
"""


def test_hanging_engine_ends_the_work_and_the_process():
    # Raises if the process has not ended.
    done = subprocess.run(
        [sys.executable, "-c", HANGING], input=JPEG, capture_output=True, timeout=200
    )
    assert done.stdout.startswith(b"failed: "), done.stderr
    assert b"engine_timeout_s" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (["no-such-variant"], {}, "no-such-variant"),
        (["mine=/no/such/directory"], {}, "/no/such/directory"),
        (["one=random:1"], {"engine": "torch", "device": "cuda:7"}, "sees"),
    ],
)
def test_variant_that_cannot_be_loaded_says_why(arguments, options, words):
    with pytest.raises(WorkerFailed, match=words):
        ImageWorker(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch_size": 0}, "max_batch_size: "),
        ({"batch_size": 4}, "batch_size: "),
        ({"variants_dir": "variants"}, "^variants_dir: needs tokens_file"),
        ({"background": "mauve"}, "background: is 'mauve'"),
    ],
)
def test_wrong_option_is_named_on_one_line(options, words):
    with pytest.raises(ValueError, match=words) as raised:
        ImageWorker(**{"engine": "null", **options})
    assert "\n" not in str(raised.value)


def test_results_are_arrays_of_the_contract():
    with ImageWorker(**NULL) as worker:
        ((_, one),) = worker.run([("a", JPEG)], top_k=1)
    assert one.embedding.dtype == np.float32


@pytest.mark.parametrize("job", [embed, classify])
def test_workers_of_ray_compute_and_not_this_process(job, tmp_path):
    # Ray is missing, or its cluster is.
    with pytest.raises((ValueError, WorkerFailed), match=r"the extra \[ray\]|no Ray cluster"):
        job([], tmp_path / "x.parquet", engine="null", workers=RayWorkers("127.0.0.1:1"))
