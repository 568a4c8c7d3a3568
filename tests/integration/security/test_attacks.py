"""Attacks on a server process: each gets a defined answer, and memory stays where it was.

Peaks are the kernel's (VmHWM), reset before each attack, which is repeated: what was not given back
would add up. The server has one heap (MALLOC_ARENA_MAX), since glibc otherwise gives each of gRPC's
threads one of its own, and what those keep free differs from run to run.
"""

from __future__ import annotations

import asyncio
import random
import re
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

import resnet50_server.inference.pipeline
from benchmarks.metadata_flood import Flood, literal
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_server.images.decode import decode
from tests.support import hostile, hostile_heif, weights
from tests.support.hostile import MIB
from tests.support.pictures import encode, heic, photo_like, picture
from tests.support.serving import DECODING, ServerProcess, connected, server_processes, serving

MAX_IMAGE_BYTES = MIB
MAX_MESSAGE_BYTES = 5 * MIB // 4
MAX_IMAGE_PIXELS = 1_000_000
DECODED_BYTES = 3 * MAX_IMAGE_PIXELS
# Peak memory of an attack, as multiples of the limits.
REFUSED_BYTES = 8 * MAX_MESSAGE_BYTES
DECODED_PEAK_BYTES = 10 * DECODED_BYTES
TIMES = 50

NORMAL = encode(photo_like(320, 240), "JPEG")
SLOW = encode(photo_like(64, 48), "JPEG")
FLAT = Image.new("RGB", (1000, 1000))
HEIC = heic(photo_like(200, 200))
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@dataclass(frozen=True)
class Attack:
    """A file, and what its sender is told (a pattern); None if it is harmless and answered."""

    content: bytes
    says: str | None


SIZE, SMALL_PIECES = "max_(image|jpeg)_pixels", "small pieces"
# An upload is looked at while it arrives, and then it is the number of tags that is seen first.
TAGS = "tags|small pieces"
TRUNCATED, FORMAT = "truncated or broken", "not a readable JPEG"

# Those that are small once refused.
REFUSED = {
    "jpeg of 65000 x 65000": Attack(hostile.jpeg_of(65000, 65000), SIZE),
    "png of 2**31 x 2**31": Attack(hostile.png(2**31 - 1, 2**31 - 1), SIZE),
    "png above half the limit": Attack(hostile.png(1100, 1100), SIZE),
    "webp canvas of 16384 x 16384": Attack(hostile.webp_canvas(16384, 16384), SIZE),
    "bmp of 60000 x 60000": Attack(hostile.bmp(60000, 60000), SIZE),
    "bmp upside down": Attack(hostile.bmp(60000, -60000), SIZE),
    "gif of 65535 x 65535": Attack(hostile.gif(65535, 65535), SIZE),
    "gif with a larger frame": Attack(hostile.gif(8, 8, frame=(65535, 65535)), SIZE),
    "gif that disposes of a huge frame": Attack(
        hostile.gif(8, 8, b"!\xf9\x04\x08\0\0\0\0", frame=(65535, 65535)), SIZE
    ),
    "tiff of 60000 x 60000": Attack(hostile.tiff(60000, 60000), SIZE),
    "png of 80,000 chunks": Attack(hostile.png_of_chunks(80_000), SMALL_PIECES),
    "png exif whose tags share": Attack(
        hostile.png(
            8,
            8,
            hostile.chunk(b"eXIf", hostile.exif(*hostile.tags_that_share(40_000, 400_000))),
            lines=bytes(200),
        ),
        TAGS,
    ),
    "png of empty deflate blocks": Attack(
        hostile.png(8, 8)[:33]
        + hostile.chunk(b"IDAT", hostile.empty_blocks(1_000_000))
        + hostile.chunk(b"IEND", b""),
        TRUNCATED,
    ),
    "interlaced png without its pixels": Attack(
        hostile.png(1000, 1000, lines=bytes(4000), interlaced=True), TRUNCATED
    ),
    "jpeg of 250,000 segments": Attack(
        hostile.with_segments(hostile.segment(0xE1, b"") * 250_000), SMALL_PIECES
    ),
    "jpeg of 250,000 comments": Attack(
        hostile.with_segments(hostile.segment(0xFE, b"") * 250_000), SMALL_PIECES
    ),
    "jpeg with junk between segments": Attack(
        b"\xff\xd8\xff\xe0\0\2" + bytes(1_000_000), SMALL_PIECES
    ),
    "jpeg of fill bytes": Attack(b"\xff\xd8" + b"\xff" * 1_000_000, SMALL_PIECES),
    "jpeg of 101 scans": Attack(hostile.progressive(64, 64, 101), "more than 100 scans"),
    "jpeg of 101 scans of one component": Attack(
        hostile.scans_of_one_component(101), "more than 100 scans"
    ),
    "jpeg of 90,000 scans without data": Attack(hostile.empty_scans(90_000), "more than 100 scans"),
    "jpeg of 250,000 segments between scans": Attack(
        hostile.segments_between_scans(250_000), "more than 10000 segments"
    ),
    "jpeg above the pixels that one may declare": Attack(hostile.jpeg_of(2000, 2001), SIZE),
    "jpeg of many scans of many pixels": Attack(hostile.progressive(600, 600, 60), "in 60 scans"),
    "jpeg exif whose tags share": Attack(
        hostile.with_segments(
            hostile.segment(
                0xE1, b"Exif\0\0" + hostile.exif(*hostile.tags_that_share(2700, 32_000))
            )
        ),
        TAGS,
    ),
    "tiff whose tags share": Attack(
        hostile.tiff(8, 8, *hostile.tags_that_share(40_000, 400_000), content=bytes(64)), TAGS
    ),
    "tiff whose long numbers share": Attack(
        hostile.tiff(8, 8, *hostile.numbers_that_share(4000, 400_000), content=bytes(500_000)), TAGS
    ),
    "tiff of fractions": Attack(
        hostile.tiff(8, 8, (282, 5, 100_000, 8), content=bytes(900_000)), TAGS
    ),
    "tiff whose strips share": Attack(hostile.strips_that_share(900, 900_000), "share their bytes"),
    "tiff with huge tiles": Attack(
        hostile.tiff(8, 8, (322, 4, 1, 60_000), (323, 4, 1, 30_000), content=bytes(64)), "tiles"
    ),
    "cut off tiff": Attack(
        hostile.half(encode(photo_like(200, 200), "TIFF", compression="tiff_lzw")), TRUNCATED
    ),
    "gif comment of 500,000 blocks": Attack(
        hostile.gif(8, 8, hostile.gif_comment(500_000)), SMALL_PIECES
    ),
    "gif of 330,000 extensions": Attack(hostile.gif(8, 8, b"!\x01\0" * 330_000), SMALL_PIECES),
    "run-length bmp without its pixels": Attack(
        hostile.bmp(600, 600, b"\x00\x02\x00\x00" * 20_000, 1), TRUNCATED
    ),
    "postscript": Attack(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "photoshop": Attack(b"8BPS\0\1" + bytes(200), "Photoshop"),
    "jpeg 2000": Attack(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), "JPEG 2000"),
    "no format": Attack(b"\1\2\3\4" * 50, FORMAT),
    "bigtiff of endless tags": Attack(
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(500_000),
        f"{SMALL_PIECES}|{TRUNCATED}",
    ),
    "avif of nothing": Attack(b"\0\0\0\x1cftypavif" + bytes(200), "without a list of pictures"),
    "avif of 60000 x 60000": Attack(hostile_heif.avif((60_000, 60_000), (8, 8)), SIZE),
    "avif of a larger picture": Attack(hostile_heif.avif((8, 8), (16384, 16384)), "coded as"),
    "avif of a larger frame": Attack(hostile_heif.avif((8, 8), (8, 8), own_size=True), "coded as"),
    "avif grid of one tile": Attack(
        hostile_heif.avif_grid((1000, 1000), (1000, 1000), (1000, 1000), 9000), "coded as"
    ),
    "avif grid of another size": Attack(
        hostile_heif.avif_grid((8, 8), (65535, 65535), (8, 8), 1), "coded as"
    ),
    "avif exif whose tags share": Attack(hostile_heif.exif_that_shares((8, 8)), TAGS),
    "heic of 60000 x 60000": Attack(hostile_heif.heic((60_000, 60_000), (8, 8)), SIZE),
    "heic of a larger picture": Attack(hostile_heif.heic((8, 8), (16384, 16384)), "coded as"),
    "heic of 100,000 pictures": Attack(
        hostile_heif.heic((8, 8), (8, 8), 100_000), "boxes, entries and coded units"
    ),
    **{
        f"half a {form}": Attack(hostile.half(encode(photo_like(200, 200), form)), TRUNCATED)
        for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
    },
    "half a HEIC": Attack(hostile.half(HEIC), TRUNCATED),
    "jpeg of restart markers": Attack(hostile.marker_flood(b"\xff\xd0", 500_000), TRUNCATED),
    "jpeg of stuffed bytes": Attack(hostile.marker_flood(b"\xff\0", 500_000), TRUNCATED),
    "jpeg of fill bytes in a scan": Attack(hostile.marker_flood(b"\xff", 1_000_000), TRUNCATED),
    # Harmless, and so answered: what is too much of them is not looked at.
    "png of 100,000 x 1": Attack(hostile.png(100_000, 1, lines=bytes(300_001)), None),
    "jpeg with a video of scans behind it": Attack(NORMAL + b"\xff\xda\0\2" * 200_000, None),
    "png that inflates to 100 MiB": Attack(hostile.png(8, 8, lines=bytes(100 * MIB)), None),
    "jpeg whose further pictures share": Attack(hostile.pictures_that_share(1500, 45_000), None),
    "png zTXt of 64 MiB": Attack(hostile.png_text_bomb(b"zTXt", 63, MIB - 100), None),
    "png zTXt of 100 MiB": Attack(hostile.png_text_bomb(b"zTXt", 1, 100 * MIB), None),
    "png iTXt of 64 MiB": Attack(hostile.png_text_bomb(b"iTXt", 63, MIB - 100), None),
    "png iCCP of 100 MiB": Attack(hostile.png_text_bomb(b"iCCP", 1, 100 * MIB), None),
    "png of 60 colour profiles": Attack(hostile.png_text_bomb(b"iCCP", 60, MIB - 100), None),
    "jpeg with a profile of 850 KB": Attack(hostile.with_segments(*hostile.profile(900_000)), None),
    "gif of 2000 frames": Attack(hostile.many_frames("GIF", 2000), None),
    "webp of 2000 frames": Attack(hostile.many_frames("WEBP", 2000), None),
    "tiff of 1000 frames": Attack(hostile.many_frames("TIFF", 1000), None),
    "tiff whose directories loop": Attack(hostile.tiff(8, 8, content=bytes(64), following=8), None),
}
# As many pixels as are allowed, from few bytes.
DECODED = {
    "png": encode(FLAT),
    "png in 16 bits": encode(Image.fromarray(np.zeros((1000, 1000), np.uint16))),
    "interlaced png": hostile.png(1000, 1000, lines=bytes(4_000_000), interlaced=True),
    "png palette": encode(FLAT.quantize(16), transparency=b"\0\x80"),
    "webp": encode(FLAT.convert("RGBA"), "WEBP", lossless=True),
    "gif": encode(FLAT, "GIF"),
    "avif": encode(FLAT.convert("RGBA"), "AVIF"),
    "heic": heic(FLAT.convert("RGB")),
    "tiff lzw": encode(FLAT, "TIFF", compression="tiff_lzw"),
    "tiff lzma": encode(FLAT, "TIFF", compression="lzma"),
    "run-length bmp": hostile.bmp(1000, 1000, b"\xff\1\xff\1\xff\1\xeb\1\0\0" * 1000, 1),
    "jpeg": encode(photo_like(1000, 1000), "JPEG", progressive=True, subsampling=0),
    "cmyk jpeg": encode(FLAT.convert("CMYK"), "JPEG"),
    "jpeg decoded at a half": encode(Image.new("RGB", (1400, 1400)), "JPEG"),
    "progressive jpeg decoded at a half": encode(
        Image.new("RGB", (1400, 1400)), "JPEG", progressive=True
    ),
}

Send = Callable[[bytes], Awaitable[tuple[grpc.StatusCode, str]]]


class Victim:
    """A server process, and the ways to call it; each returns what the caller is told."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.address = process.wait_until_listening()
        self.pid = process.process.pid
        self.channel: grpc.aio.Channel | None = None

    async def unary(self, content: bytes) -> tuple[grpc.StatusCode, str]:
        image = image_pb2.Image(encoded=content)
        return await self.image(image)

    async def image(self, image: image_pb2.Image) -> tuple[grpc.StatusCode, str]:
        stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        return await told(stub.Classify(inference_pb2.ClassifyRequest(image=image)))

    async def upload(self, content: bytes) -> tuple[grpc.StatusCode, str]:
        """Upload with gRPC's blocking client.

        Its other one may lose the status of a call that is refused while chunks are being written.
        """
        Request = inference_pb2.ClassifyUploadRequest
        requests = [Request(options=inference_pb2.ClassifyUploadOptions())]
        for start in range(0, len(content), 64 * 1024):
            requests.append(Request(chunk=content[start : start + 64 * 1024]))

        def send() -> tuple[grpc.StatusCode, str]:
            with grpc.insecure_channel(self.address) as channel:
                stub = inference_pb2_grpc.InferenceServiceStub(channel)
                try:
                    stub.ClassifyUpload(iter(requests))
                except grpc.RpcError as error:
                    return error.code(), error.details()
                return grpc.StatusCode.OK, ""

        return await asyncio.to_thread(send)

    async def frame(self, content: bytes) -> tuple[grpc.StatusCode, str]:
        Request = inference_pb2.ClassifyStreamRequest
        stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        call = stub.ClassifyStream()
        await call.write(Request(config=inference_pb2.ClassifyStreamConfig()))
        image = image_pb2.Image(encoded=content)
        await call.write(Request(frame=inference_pb2.Frame(frame_id=1, image=image)))
        reply = await call.read()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK  # a bad frame does not end its stream
        code = next(code for code in grpc.StatusCode if code.value[0] == reply.error.code)
        return code, reply.error.message

    async def malformed(self, method: str, content: bytes) -> tuple[grpc.StatusCode, str]:
        """Send a message as it is."""
        path = f"/{method}"
        if path.endswith("Upload"):
            return await told(self.channel.stream_unary(path)(iter([content])))
        if path.endswith(("Stream", "Watch", "Info")):
            return await told(self.channel.stream_stream(path)(iter([content])))
        return await told(self.channel.unary_unary(path)(content))

    def reset_peak(self) -> int:
        """Forget the peak; return what the process holds now, in bytes."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    @property
    def peak(self) -> int:
        return self._memory("VmHWM")

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(name + ":"))
        return int(line.split()[1]) * 1024


async def told(call: grpc.aio.Call) -> tuple[grpc.StatusCode, str]:
    code = await asyncio.wait_for(call.code(), 60)
    return code, await call.details() or ""


SETTINGS = (
    *("--variants", "IMAGENET1K_V2"),
    *("--engine", "timed", "--timed-alpha-ms", "0", "--timed-beta-ms", "0"),
    *("--decode-threads", "1"),
    *("--max-image-bytes", str(MAX_IMAGE_BYTES)),
    *("--max-image-pixels", str(MAX_IMAGE_PIXELS)),
    *("--max-jpeg-pixels", str(4 * MAX_IMAGE_PIXELS)),
    *("--max-message-bytes", str(MAX_MESSAGE_BYTES)),
)


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
            for content in DECODED.values():
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


@pytest.mark.parametrize("content", DECODED.values(), ids=DECODED)
async def test_largest_allowed_image_costs_bounded_memory(victim, content):
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
# Bytes that no parser accepts.
MALFORMED = {
    "cut off": b"\x0a\x7f\x01",
    "a length of 2**35": b"\x0a\xff\xff\xff\xff\x7f",
    "a length of 2**63": b"\x0a" + b"\xff" * 9 + b"\x01",
    "an endless number": b"\x08" + b"\xff" * 20,
    "100,000 open groups": hostile.deep_groups(100_000),
    "20,000 messages in each other": hostile.nested(20_000),
    "field number 0": b"\x02\x00",
    "the end of no group": b"\x0c",
    "text that is none": b"\x0a\x04\x0a\x02\xff\xfe",
    "random bytes": random.Random(1).randbytes(MAX_MESSAGE_BYTES // 2),
}
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


async def test_attacks_leave_only_our_own_lines_on_stderr():
    """One file alone could make decoders write a warning for each of its 40,000 tags."""
    with server_processes() as start:
        victim = Victim(start(*SETTINGS))
        async with grpc.aio.insecure_channel(victim.address) as victim.channel:
            for attack in REFUSED.values():
                for send in (victim.unary, victim.upload, victim.frame):
                    await send(attack.content)
            for content in MALFORMED.values():
                await victim.malformed("resnet50.v1.InferenceService/Classify", content)
            for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
                options = {"compression": "tiff_lzw"} if form == "TIFF" else {}
                whole = encode(picture(64, 48), form, **options)
                for seed in range(40):
                    code, _ = await victim.unary(hostile.mutated(whole, seed))
                    assert code in (grpc.StatusCode.OK, INVALID)
        status, errors = victim.process.terminate()
    assert status == 0
    foreign = [line for line in errors.splitlines() if not is_ours(line)]
    assert foreign == []


async def test_non_utf8_metadata_is_not_logged_and_calls_go_on():
    """gRPC logs a traceback for each value, on the event loop, for calls of anybody."""
    with server_processes() as start:
        victim = Victim(start(*SETTINGS))
        flood = Flood(victim.address, b"\xff")
        try:
            async with grpc.aio.insecure_channel(victim.address) as victim.channel:
                while flood.calls < 100:
                    code, text = await victim.unary(NORMAL)
                    assert code is grpc.StatusCode.OK, text
        finally:
            flood.close()
        status, errors = victim.process.terminate()
    assert status == 0
    assert [line for line in errors.splitlines() if not is_ours(line)] == []


METHODS = (
    "resnet50.v1.InferenceService/Classify",
    "resnet50.v1.InferenceService/ClassifyStream",
    "resnet50.v1.VariantService/ListVariants",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
)


@pytest.mark.parametrize("method", METHODS)
async def test_call_with_too_many_metadata_pairs_is_refused(method):
    async with serving() as server, connected(server) as channel:

        async def told_with(pairs: int) -> tuple[grpc.StatusCode, str]:
            # The SDK's gRPC adds one: user-agent.
            metadata = [("x-more", str(number)) for number in range(pairs - 1)]
            call = channel.stream_unary(f"/{method}")(iter([b""]), metadata=metadata, timeout=30)
            return await call.code(), await call.details()

        if method != "grpc.health.v1.Health/Watch":  # which would not end
            assert "metadata" not in (await told_with(64))[1]
        code, text = await told_with(65)
    assert code is INVALID
    assert text == "metadata: has more pairs than 64, the limit; send fewer"


async def test_broken_headers_write_nothing_to_stderr():
    """gRPC's C core writes there by itself, at the level ERROR."""
    broken = (
        literal(0, b"grpc-timeout", b"zz"),
        literal(0, b"grpc-encoding", b"?"),
        literal(0, b"te", b"?"),
        literal(0, b"x-bin", b"?"),
    )
    with server_processes() as start:
        victim = Victim(start(*SETTINGS))
        for more in broken:
            flood = Flood(victim.address, b"x", 1, 1000, more)
            async with grpc.aio.insecure_channel(victim.address) as victim.channel:
                while flood.calls < 20:
                    code, text = await victim.unary(NORMAL)
                    assert code is grpc.StatusCode.OK, text
            flood.close()
        status, errors = victim.process.terminate()
    assert status == 0
    assert [line for line in errors.splitlines() if not is_ours(line)] == []


def is_ours(line: str) -> bool:
    """Whether it is a line of our log that is no complaint."""
    return re.match(r"\S+ \S+ INFO resnet50_server\.", line) is not None


async def test_slow_decoding_is_refused_in_a_process():
    with server_processes() as start:
        victim = Victim(start(*SETTINGS, "--decode-timeout-s", "1e-9"))
        async with grpc.aio.insecure_channel(victim.address) as victim.channel:
            for send in (victim.unary, victim.upload, victim.frame):
                code, text = await send(NORMAL)
                assert code is INVALID
                assert "the limit (decode_timeout_s); send a smaller or simpler image" in text


async def test_endless_image_is_refused_and_a_spare_thread_decodes(monkeypatch):
    entered, leave = threading.Event(), threading.Event()

    def stand_still(source, *arguments, **options):
        if source == SLOW:
            entered.set()
            assert leave.wait(60)
        return decode(source, *arguments, **options)

    monkeypatch.setattr(resnet50_server.inference.pipeline, "decode", stand_still)
    async with (
        serving(decode_threads=1, decode_timeout_s=0.5, **DECODING) as server,
        connected(server) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        def classify(content: bytes, **options) -> grpc.aio.Call:
            image = image_pb2.Image(encoded=content)
            return stub.Classify(inference_pb2.ClassifyRequest(image=image), **options)

        code, text = await told(classify(SLOW))
        assert code is INVALID
        assert "within 0.5 s, the limit (decode_timeout_s)" in text
        assert entered.is_set()
        # Its thread is still taken.
        assert (await classify(NORMAL)).timing.batch_size == 1
        leave.set()


def test_code_in_weights_is_not_run_and_stops_the_start(tmp_path):
    sprung = tmp_path / "sprung"
    directory = weights.custom_variant(tmp_path / "mine", {"fc.weight": Trap(sprung)})
    with server_processes() as start:
        process = start("--variants", f"mine={directory}", "--device", "cpu").process
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output == ""
    (message,) = [line for line in errors.splitlines() if "resnet50-server:" in line]
    assert "was refused: it is broken, or a pickle that could run code (it needs" in message
    assert "Traceback" not in errors
    assert not sprung.exists()


class Trap:
    """A value whose unpickling leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
