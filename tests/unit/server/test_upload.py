"""An upload in chunks, where no server is needed to see it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from resnet50.v1 import inference_pb2
from resnet50_server.api.call import Call
from resnet50_server.api.upload import Upload
from resnet50_server.errors import Stalled
from resnet50_server.events import ServerEvents
from resnet50_server.images.limits import ImageLimits
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.quotas import Limits
from resnet50_server.variants.spec import parse_variant
from tests.support import virtual_time
from tests.support.pictures import encode, picture

PNG = encode(picture())
TRANSFORM = parse_variant("IMAGENET1K_V2").transform
Part = inference_pb2.ClassifyUploadRequest


class Pool:
    """Runs calls at once, and keeps how urgent they were."""

    def __init__(self) -> None:
        self.urgency: list[tuple[float | None, bool]] = []

    def submit(self, call, context):
        self.urgency.append((context.deadline, context.bulk))
        future = asyncio.get_running_loop().create_future()
        future.set_result(call())
        return future


async def parts(chunk_bytes: int, pause_s: float) -> AsyncIterator[Part]:
    sha256 = hashlib.sha256(PNG).digest()
    yield Part(options=inference_pb2.ClassifyUploadOptions(sha256=sha256))
    for at in range(0, len(PNG), chunk_bytes):
        await asyncio.sleep(pause_s)
        yield Part(chunk=PNG[at : at + chunk_bytes])


async def receive(pool: Pool, sent: AsyncIterator[Part], **of_call) -> bytes:
    pipeline = SimpleNamespace(limits=ImageLimits(), decode_pool=pool, events=ServerEvents())
    call = Call("ClassifyUpload", "id", (), **of_call)
    upload = Upload(sent, pipeline, call, 30.0, 600.0)
    await upload.options()
    with Admission(Limits()).admit("me") as call.permit:
        return await upload.image(TRANSFORM)


@pytest.mark.parametrize("pause_s", [29.0, 31.0])
def test_upload_that_trickles_is_cut_in_the_end(pause_s):
    async def trickle() -> float:
        name = "upload_timeout_s" if pause_s < 30.0 else "upload_idle_timeout_s"
        with pytest.raises(Stalled, match=name):
            await receive(Pool(), parts(1, pause_s))
        return asyncio.get_running_loop().time()

    assert virtual_time.run(trickle()) == pytest.approx(600.0 if pause_s < 30.0 else 30.0)


def test_upload_whose_parts_are_always_there_is_cut_in_the_end():
    async def flood() -> AsyncIterator[Part]:
        yield Part(options=inference_pb2.ClassifyUploadOptions())
        while True:
            loop: Any = asyncio.get_running_loop()
            loop.now += 1.0  # it is the server that is slow
            yield Part(chunk=PNG)

    async def never_wait() -> None:
        with pytest.raises(Stalled, match="upload_timeout_s"):
            await receive(Pool(), flood())

    virtual_time.run(never_wait())


def test_upload_waits_for_threads_as_its_call_says():
    async def upload() -> None:
        pool = Pool()
        assert await receive(pool, parts(10_000, 0.0), deadline=5.0, bulk=True) == PNG
        assert len(pool.urgency) >= 2  # the header, and the digest
        assert set(pool.urgency) == {(5.0, True)}

    virtual_time.run(upload())
