"""A server process that is attacked, its limits, and the attacks."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from tests.support import hostile, hostile_heif
from tests.support.hostile import MIB
from tests.support.pictures import encode, heic, photo_like
from tests.support.serving import ServerProcess

MAX_IMAGE_BYTES = MIB
MAX_MESSAGE_BYTES = 5 * MIB // 4
MAX_IMAGE_PIXELS = 1_000_000
NORMAL = encode(photo_like(320, 240), "JPEG")
FLAT = Image.new("RGB", (1000, 1000))
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@dataclass(frozen=True)
class Attack:
    """A file, made when it is needed, and the pattern of its error.

    Attributes:
        make: Returns the file.
        says: None if the file is harmless and answered.
    """

    make: Callable[[], bytes]
    says: str | None

    @cached_property
    def content(self) -> bytes:
        return self.make()


def half_of(form: str) -> bytes:
    return hostile.half(encode(photo_like(200, 200), form))


SIZE, SMALL_PIECES = "max_(image|jpeg)_pixels", "small pieces"
# An upload is looked at while it arrives, and then it is the number of tags that is seen first.
TAGS = "tags|small pieces"
TRUNCATED, FORMAT = "truncated or broken", "not a readable JPEG"
# Those that are small once refused.
REFUSED = {
    "jpeg of 65000 x 65000": Attack(lambda: hostile.jpeg_of(65000, 65000), SIZE),
    "png of 2**31 x 2**31": Attack(lambda: hostile.png(2**31 - 1, 2**31 - 1), SIZE),
    "png above half the limit": Attack(lambda: hostile.png(1100, 1100), SIZE),
    "webp canvas of 16384 x 16384": Attack(lambda: hostile.webp_canvas(16384, 16384), SIZE),
    "bmp of 60000 x 60000": Attack(lambda: hostile.bmp(60000, 60000), SIZE),
    "bmp upside down": Attack(lambda: hostile.bmp(60000, -60000), SIZE),
    "gif of 65535 x 65535": Attack(lambda: hostile.gif(65535, 65535), SIZE),
    "gif with a larger frame": Attack(lambda: hostile.gif(8, 8, frame=(65535, 65535)), SIZE),
    "gif that disposes of a huge frame": Attack(
        lambda: hostile.gif(8, 8, b"!\xf9\x04\x08\0\0\0\0", frame=(65535, 65535)), SIZE
    ),
    "tiff of 60000 x 60000": Attack(lambda: hostile.tiff(60000, 60000), SIZE),
    "png of 80,000 chunks": Attack(lambda: hostile.png_of_chunks(80_000), SMALL_PIECES),
    "png exif whose tags share": Attack(
        lambda: hostile.png(
            8,
            8,
            hostile.chunk(b"eXIf", hostile.exif(*hostile.tags_that_share(40_000, 400_000))),
            lines=bytes(200),
        ),
        TAGS,
    ),
    "png of empty deflate blocks": Attack(
        lambda: (
            hostile.png(8, 8)[:33]
            + hostile.chunk(b"IDAT", hostile.empty_blocks(1_000_000))
            + hostile.chunk(b"IEND", b"")
        ),
        TRUNCATED,
    ),
    "interlaced png without its pixels": Attack(
        lambda: hostile.png(1000, 1000, lines=bytes(4000), interlaced=True), TRUNCATED
    ),
    "jpeg of 250,000 segments": Attack(
        lambda: hostile.with_segments(hostile.segment(0xE1, b"") * 250_000), SMALL_PIECES
    ),
    "jpeg of 250,000 comments": Attack(
        lambda: hostile.with_segments(hostile.segment(0xFE, b"") * 250_000), SMALL_PIECES
    ),
    "jpeg with junk between segments": Attack(
        lambda: b"\xff\xd8\xff\xe0\0\2" + bytes(1_000_000), SMALL_PIECES
    ),
    "jpeg of fill bytes": Attack(lambda: b"\xff\xd8" + b"\xff" * 1_000_000, SMALL_PIECES),
    "jpeg of 101 scans": Attack(lambda: hostile.progressive(64, 64, 101), "more than 100 scans"),
    "jpeg of 101 scans of one component": Attack(
        lambda: hostile.scans_of_one_component(101), "more than 100 scans"
    ),
    "jpeg of 90,000 scans without data": Attack(
        lambda: hostile.empty_scans(90_000), "more than 100 scans"
    ),
    "jpeg of 250,000 segments between scans": Attack(
        lambda: hostile.segments_between_scans(250_000), "more than 10000 segments"
    ),
    "jpeg above the pixels that one may declare": Attack(lambda: hostile.jpeg_of(2000, 2001), SIZE),
    "jpeg of many scans of many pixels": Attack(
        lambda: hostile.progressive(600, 600, 60), "in 60 scans"
    ),
    "jpeg exif whose tags share": Attack(
        lambda: hostile.with_segments(
            hostile.segment(
                0xE1, b"Exif\0\0" + hostile.exif(*hostile.tags_that_share(2700, 32_000))
            )
        ),
        TAGS,
    ),
    "tiff whose tags share": Attack(
        lambda: hostile.tiff(8, 8, *hostile.tags_that_share(40_000, 400_000), content=bytes(64)),
        TAGS,
    ),
    "tiff whose long numbers share": Attack(
        lambda: hostile.tiff(
            8, 8, *hostile.numbers_that_share(4000, 400_000), content=bytes(500_000)
        ),
        TAGS,
    ),
    "tiff of fractions": Attack(
        lambda: hostile.tiff(8, 8, (282, 5, 100_000, 8), content=bytes(900_000)), TAGS
    ),
    "tiff whose strips share": Attack(
        lambda: hostile.strips_that_share(900, 900_000), "share their bytes"
    ),
    "tiff with huge tiles": Attack(
        lambda: hostile.tiff(8, 8, (322, 4, 1, 60_000), (323, 4, 1, 30_000), content=bytes(64)),
        "tiles",
    ),
    "cut off tiff": Attack(
        lambda: hostile.half(encode(photo_like(200, 200), "TIFF", compression="tiff_lzw")),
        TRUNCATED,
    ),
    "gif comment of 500,000 blocks": Attack(
        lambda: hostile.gif(8, 8, hostile.gif_comment(500_000)), SMALL_PIECES
    ),
    "gif of 330,000 extensions": Attack(
        lambda: hostile.gif(8, 8, b"!\x01\0" * 330_000), SMALL_PIECES
    ),
    "run-length bmp without its pixels": Attack(
        lambda: hostile.bmp(600, 600, b"\x00\x02\x00\x00" * 20_000, 1), TRUNCATED
    ),
    "postscript": Attack(
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"
    ),
    "photoshop": Attack(lambda: b"8BPS\0\1" + bytes(200), "Photoshop"),
    "jpeg 2000": Attack(lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), "JPEG 2000"),
    "no format": Attack(lambda: b"\1\2\3\4" * 50, FORMAT),
    "bigtiff of endless tags": Attack(
        lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(500_000),
        f"{SMALL_PIECES}|{TRUNCATED}",
    ),
    "avif of nothing": Attack(
        lambda: b"\0\0\0\x1cftypavif" + bytes(200), "without a list of pictures"
    ),
    "avif of 60000 x 60000": Attack(lambda: hostile_heif.avif((60_000, 60_000), (8, 8)), SIZE),
    "avif of a larger picture": Attack(
        lambda: hostile_heif.avif((8, 8), (16384, 16384)), "coded as"
    ),
    "avif of a larger frame": Attack(
        lambda: hostile_heif.avif((8, 8), (8, 8), own_size=True), "coded as"
    ),
    "avif grid of one tile": Attack(
        lambda: hostile_heif.avif_grid((1000, 1000), (1000, 1000), (1000, 1000), 9000), "coded as"
    ),
    "avif grid of another size": Attack(
        lambda: hostile_heif.avif_grid((8, 8), (65535, 65535), (8, 8), 1), "coded as"
    ),
    "avif exif whose tags share": Attack(lambda: hostile_heif.exif_that_shares((8, 8)), TAGS),
    "heic of 60000 x 60000": Attack(lambda: hostile_heif.heic((60_000, 60_000), (8, 8)), SIZE),
    "heic of a larger picture": Attack(
        lambda: hostile_heif.heic((8, 8), (16384, 16384)), "coded as"
    ),
    "heic of 100,000 pictures": Attack(
        lambda: hostile_heif.heic((8, 8), (8, 8), 100_000), "boxes, entries and coded units"
    ),
    **{
        f"half a {form}": Attack(partial(half_of, form), TRUNCATED)
        for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
    },
    "half a HEIC": Attack(lambda: hostile.half(heic(photo_like(200, 200))), TRUNCATED),
    "jpeg of restart markers": Attack(
        lambda: hostile.marker_flood(b"\xff\xd0", 500_000), TRUNCATED
    ),
    "jpeg of stuffed bytes": Attack(lambda: hostile.marker_flood(b"\xff\0", 500_000), TRUNCATED),
    "jpeg of fill bytes in a scan": Attack(
        lambda: hostile.marker_flood(b"\xff", 1_000_000), TRUNCATED
    ),
    # Harmless, and so answered: what is too much of them is not looked at.
    "png of 100,000 x 1": Attack(lambda: hostile.png(100_000, 1, lines=bytes(300_001)), None),
    "jpeg with a video of scans behind it": Attack(
        lambda: NORMAL + b"\xff\xda\0\2" * 200_000, None
    ),
    "png that inflates to 100 MiB": Attack(lambda: hostile.png(8, 8, lines=bytes(100 * MIB)), None),
    "jpeg whose further pictures share": Attack(
        lambda: hostile.pictures_that_share(1500, 45_000), None
    ),
    "png zTXt of 64 MiB": Attack(lambda: hostile.png_text_bomb(b"zTXt", 63, MIB - 100), None),
    "png zTXt of 100 MiB": Attack(lambda: hostile.png_text_bomb(b"zTXt", 1, 100 * MIB), None),
    "png iTXt of 64 MiB": Attack(lambda: hostile.png_text_bomb(b"iTXt", 63, MIB - 100), None),
    "png iCCP of 100 MiB": Attack(lambda: hostile.png_text_bomb(b"iCCP", 1, 100 * MIB), None),
    "png of 60 colour profiles": Attack(
        lambda: hostile.png_text_bomb(b"iCCP", 60, MIB - 100), None
    ),
    "jpeg with a profile of 850 KB": Attack(
        lambda: hostile.with_segments(*hostile.profile(900_000)), None
    ),
    "gif of 2000 frames": Attack(lambda: hostile.many_frames("GIF", 2000), None),
    "webp of 2000 frames": Attack(lambda: hostile.many_frames("WEBP", 2000), None),
    "tiff of 1000 frames": Attack(lambda: hostile.many_frames("TIFF", 1000), None),
    "tiff whose directories loop": Attack(
        lambda: hostile.tiff(8, 8, content=bytes(64), following=8), None
    ),
}

# As many pixels as are allowed, from few bytes.
DECODED: dict[str, Callable[[], bytes]] = {
    "png": lambda: encode(FLAT),
    "png in 16 bits": lambda: encode(Image.fromarray(np.zeros((1000, 1000), np.uint16))),
    "interlaced png": lambda: hostile.png(1000, 1000, lines=bytes(4_000_000), interlaced=True),
    "png palette": lambda: encode(FLAT.quantize(16), transparency=b"\0\x80"),
    "webp": lambda: encode(FLAT.convert("RGBA"), "WEBP", lossless=True),
    "gif": lambda: encode(FLAT, "GIF"),
    "avif": lambda: encode(FLAT.convert("RGBA"), "AVIF"),
    "heic": lambda: heic(FLAT.convert("RGB")),
    "tiff lzw": lambda: encode(FLAT, "TIFF", compression="tiff_lzw"),
    "tiff lzma": lambda: encode(FLAT, "TIFF", compression="lzma"),
    "run-length bmp": lambda: hostile.bmp(1000, 1000, b"\xff\1\xff\1\xff\1\xeb\1\0\0" * 1000, 1),
    "jpeg": lambda: encode(photo_like(1000, 1000), "JPEG", progressive=True, subsampling=0),
    "cmyk jpeg": lambda: encode(FLAT.convert("CMYK"), "JPEG"),
    "jpeg decoded at a half": lambda: encode(Image.new("RGB", (1400, 1400)), "JPEG"),
    "progressive jpeg decoded at a half": lambda: encode(
        Image.new("RGB", (1400, 1400)), "JPEG", progressive=True
    ),
}

Send = Callable[[bytes], Awaitable[tuple[grpc.StatusCode, str]]]


class Victim:
    """A server process, and the ways to call it; each returns the error or the result."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.address = process.wait_until_listening()
        self.pid = process.process.pid
        self.channel: Any = None

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
                    return error.code(), error.details() or ""
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
