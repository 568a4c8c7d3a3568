"""Attacks on a server process: each gets a defined answer, and memory stays where it was.

Peaks are the kernel's (VmHWM), reset before each attack, which is repeated: what was not given back
would add up. The server has one heap (MALLOC_ARENA_MAX), since glibc otherwise gives each of gRPC's
threads one of its own, and what those keep free differs from run to run.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from resnet50.v1 import image_pb2
from tests.support import hostile
from tests.support.attacked_server import (
    DECODED,
    INVALID,
    MALFORMED,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    MAX_MESSAGE_BYTES,
    NORMAL,
    REFUSED,
    SETTINGS,
    Victim,
    told,
)
from tests.support.hostile import MIB
from tests.support.serving import server_processes

DECODED_BYTES = 3 * MAX_IMAGE_PIXELS
# Peak memory of an attack, as multiples of the limits.
REFUSED_BYTES = 8 * MAX_MESSAGE_BYTES
DECODED_PEAK_BYTES = 10 * DECODED_BYTES
# A megabyte that each attack kept, or a third of one, would be above the limits.
TIMES = 20


@pytest.fixture(scope="module")
def process() -> Iterator[Victim]:
    with server_processes() as start:
        yield Victim(start(*SETTINGS, environment={"MALLOC_ARENA_MAX": "1"}))


@pytest.fixture
async def victim(process: Victim) -> AsyncIterator[Victim]:
    """The server, which knows the largest images and messages already."""
    async with grpc.aio.insecure_channel(process.address) as channel:
        first = process.channel is None
        process.channel = channel
        if first:
            for make in DECODED.values():
                content = make()
                for _ in range(3):
                    await process.unary(content)
            for _ in range(20):
                await process.unary(NORMAL + bytes(MAX_IMAGE_BYTES - len(NORMAL)))
                await process.unary(hostile.png_of_chunks(80_000))
        yield process
        assert await process.unary(NORMAL) == (grpc.StatusCode.OK, "")


@pytest.mark.parametrize("attack", REFUSED.values(), ids=REFUSED)
async def test_hostile_file_is_answered_and_leaves_memory_flat(victim, attack):
    before = victim.reset_peak()
    sends = [victim.unary] * TIMES + [victim.upload, victim.frame] * 5
    for send in sends:
        code, text = await send(attack.content)
        if attack.says is None:
            assert (code, text) == (grpc.StatusCode.OK, "")
        else:
            assert code is INVALID
            assert text.startswith("image.encoded: ")
            assert re.search(attack.says, text)
    assert victim.peak - before <= REFUSED_BYTES


@pytest.mark.parametrize("kind", DECODED)
async def test_largest_allowed_image_costs_bounded_memory(victim, kind):
    content = DECODED[kind]()
    before = victim.reset_peak()
    for send in [victim.unary] * TIMES + [victim.upload, victim.frame] * 5:
        assert await send(content) == (grpc.StatusCode.OK, "")
    assert victim.peak - before <= DECODED_PEAK_BYTES


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("method", ["Classify", "ClassifyUpload", "ClassifyStream"])
async def test_compressed_bomb_is_refused_before_it_is_expanded(victim, method, compression):
    """Some kilobytes that say: a hundred times the limit in zeros."""
    path, bomb = f"/resnet50.v1.InferenceService/{method}", bytes(100 * MAX_MESSAGE_BYTES)
    before = victim.reset_peak()
    for _ in range(3):
        if method == "Classify":
            call = victim.channel.unary_unary(path)(bomb, compression=compression)
        elif method == "ClassifyUpload":
            call = victim.channel.stream_unary(path)(iter([bomb]), compression=compression)
        else:
            call = victim.channel.stream_stream(path)(iter([bomb]), compression=compression)
        code, text = await told(call)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in text
    assert victim.peak - before <= REFUSED_BYTES


async def test_oversized_message_is_refused_and_leaves_memory_flat(victim):
    before = victim.reset_peak()
    for _ in range(5):
        code, _ = await victim.unary(bytes(20 * MAX_MESSAGE_BYTES))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert victim.peak - before <= REFUSED_BYTES


async def test_upload_over_the_limit_is_refused_and_leaves_memory_flat(victim):
    before = victim.reset_peak()
    for _ in range(5):
        code, text = await victim.upload(NORMAL + bytes(20 * MIB))
        assert code is INVALID
        assert "max_image_bytes" in text
    # gRPC receives ahead of the reader.
    assert victim.peak - before <= 2 * REFUSED_BYTES


METHODS = [
    f"resnet50.v1.InferenceService/{kind}{way}"
    for kind in ("Classify", "Embed")
    for way in ("", "Upload", "Stream")
]
UNKNOWN_FIELDS = ("20,000 messages in each other", "text that is none", "field number 0")
# Messages that parse, without any field of the method.
MEANINGLESS = {
    "wrong wire types": b"\x0d\0\0\0\0\x15\0\0\0\0\x08\x01\x10\x01",
    "unknown fields": b"\xf8\x01\x01" * (MAX_MESSAGE_BYTES // 4),
    "an image in 500,000 pieces": b"\x12\x00" * 500_000,
}


OTHERS = [
    f"resnet50.v1.VariantService/{name}Variant{s}"
    for name, s in (("List", "s"), ("Get", ""), ("Load", ""), ("Unload", ""))
]
OTHERS += ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"]
OTHERS += ["grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]


@pytest.mark.parametrize("method", [*METHODS, *OTHERS])
async def test_malformed_message_is_invalid_and_leaves_memory_flat(victim, method):
    before = victim.reset_peak()
    for name, content in MALFORMED.items():
        if method.endswith("ListVariants") and name in UNKNOWN_FIELDS:
            continue  # a message without fields, which parses whatever is not its own
        for _ in range(5):
            code, text = await victim.malformed(method, content)
            if method.endswith(("/LoadVariant", "/UnloadVariant")):  # refused before it is read
                assert code is grpc.StatusCode.PERMISSION_DENIED
                continue
            assert code is INVALID
            assert "not the protobuf message" in text
    assert victim.peak - before <= REFUSED_BYTES


@pytest.mark.parametrize("method", METHODS)
async def test_meaningless_message_is_invalid_and_leaves_memory_flat(victim, method):
    before = victim.reset_peak()
    for content in MEANINGLESS.values():
        for _ in range(5):
            code, _ = await victim.malformed(method, content)
            assert code is INVALID
    assert victim.peak - before <= REFUSED_BYTES


HUGE = 2**32 - 1
RAW = {
    "both sides": {"width": HUGE, "height": HUGE},
    "as many pixels as allowed, none there": {"width": 1000, "height": 1000},
    "more pixels than allowed": {"width": 65535, "height": 65535},
    "a huge stride": {"width": 8, "height": 8, "row_stride_bytes": HUGE},
    "a stride shorter than a row": {"width": 8, "height": 8, "row_stride_bytes": 1},
    "a stride that overlaps the end": {"width": 8, "height": 8, "row_stride_bytes": 1000},
    "an unknown format": {"width": 8, "height": 8, "pixel_format": 99},
    "half a chroma plane": {
        "width": 8,
        "height": 8,
        "pixel_format": image_pb2.PIXEL_FORMAT_I420,
        "pixels": bytes(70),
    },
    "odd sides": {"width": 7, "height": 7, "pixel_format": image_pb2.PIXEL_FORMAT_NV12},
}


@pytest.mark.parametrize("fields", RAW.values(), ids=RAW)
async def test_raw_image_whose_numbers_are_impossible_is_refused(victim, fields):
    defaults = {"pixel_format": image_pb2.PIXEL_FORMAT_RGB, "pixels": bytes(192)}
    raw = image_pb2.RawImage(**defaults | fields)
    before = victim.reset_peak()
    for _ in range(TIMES):
        code, text = await victim.image(image_pb2.Image(raw=raw))
        assert code is INVALID
        assert text.startswith("image.raw")
    assert victim.peak - before <= REFUSED_BYTES
