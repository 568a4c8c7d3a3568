"""Preprocessing at the caller: python -m benchmarks.preprocess [--rounds 5] [--write].

Server CPU of an image that the caller has preprocessed, against that of the image itself, and the
bytes that are sent of each: a photo of 500 x 375, one of 12 megapixels, and a frame of 1080p as
JPEG, as I420 and as RGB. The engine takes no time, so the CPU is that of gRPC, decoding, resizing
and batching. The caller's own CPU for preprocessing is beside it. Figures are ratios within one
run, medians over interleaved rounds. Linux only. With --write, the table goes into
docs/how-to/preprocess-at-the-client.md; `make preprocess` does that.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import numpy as np
from PIL import Image

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_client import AsyncClient, ImageInput, RawImage
from resnet50_client.images import to_image
from resnet50_client.preprocess import Preprocessor
from tests.support.pictures import PHOTOS

from . import page
from .large_photos import large_photo
from .process import DECODING, cpu_s, server

PAGE = page.DOCS / "how-to" / "preprocess-at-the-client.md"
CLASSIFY = "/resnet50.v1.InferenceService/Classify"
IN_FLIGHT = 8
# Server CPU of a turn, in seconds: the clock of a process is fine, its scheduling is not.
TURN_S = 0.5
# A frame of 1080p in RGB has 6.2 MB.
MAX_MESSAGE_BYTES = 8 * 2**20


def frame() -> Image.Image:
    """Return a frame of 1080p."""
    with Image.open(io.BytesIO(large_photo(PHOTOS[0], 1920, 1080))) as opened:
        return opened.convert("RGB")


def jpeg(image: Image.Image) -> bytes:
    """Return an image as a JPEG of quality 90."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def i420(image: Image.Image) -> RawImage:
    """Return an image as the planes of I420, BT.601 full range, as Pillow converts it."""
    luma, blue, red = image.convert("YCbCr").split()
    half = (image.width // 2, image.height // 2)
    planes = [luma, *(one.resize(half, Image.Resampling.BOX) for one in (blue, red))]
    packed = b"".join(plane.tobytes() for plane in planes)
    pixels = np.frombuffer(packed, np.uint8).reshape(image.height * 3 // 2, image.width)
    return RawImage(pixels, "I420", "BT601", "full")


def images() -> dict[str, ImageInput]:
    """Return the images that are measured, by their names."""
    shown = frame()
    return {
        "JPEG, 500 x 375": large_photo(PHOTOS[0], 500, 375),
        "JPEG, 4032 x 3024 (12 MP)": large_photo(PHOTOS[0], 4032, 3024),
        "frame 1920 x 1080, JPEG": jpeg(shown),
        "frame 1920 x 1080, I420": i420(shown),
        "frame 1920 x 1080, RGB": RawImage(np.asarray(shown), "RGB"),
    }


@dataclass
class Way:
    """A way to send an image.

    Attributes:
        request: The serialized request.
        cpu_ms: Server CPU of an image in each round, in milliseconds.
    """

    request: bytes
    cpu_ms: list[float] = field(default_factory=list)


def request_of(image: ImageInput) -> bytes:
    """Return a serialized request."""
    message: image_pb2.Image = to_image(image)
    return inference_pb2.ClassifyRequest(image=message).SerializeToString()


async def measure(channel: grpc.aio.Channel, pid: int, way: Way, calls: int) -> float:
    """Return the server's CPU of a call, in ms."""
    classify = channel.unary_unary(CLASSIFY)

    async def work(count: int) -> None:
        for _ in range(count):
            await classify(way.request)

    before = cpu_s(pid)
    shares = [calls // IN_FLIGHT + (number < calls % IN_FLIGHT) for number in range(IN_FLIGHT)]
    await asyncio.gather(*map(work, shares))
    return (cpu_s(pid) - before) / calls * 1e3


def caller_ms(preprocess: Preprocessor, image: ImageInput) -> float:
    """Return the caller's CPU for preprocessing an image, in ms."""
    preprocess(image)
    times = []
    for _ in range(5):
        started = time.thread_time()
        preprocess(image)
        times.append(time.thread_time() - started)
    return statistics.median(times) * 1e3


async def compare(
    channel: grpc.aio.Channel, pid: int, whole: Way, crop: Way, rounds: int
) -> tuple[float, float, float]:
    """Take turns between an image and its crop; return the ratio of CPU and its range."""
    calls = {}
    for way in (whole, crop):
        once = await measure(channel, pid, way, IN_FLIGHT)  # warms up, too
        calls[id(way)] = max(IN_FLIGHT, int(TURN_S * 1e3 / max(once, 0.01)))
    for _ in range(rounds):
        for way in (whole, crop):
            way.cpu_ms.append(await measure(channel, pid, way, calls[id(way)]))
    ratios = [one / other for one, other in zip(crop.cpu_ms, whole.cpu_ms, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


async def table(rounds: int, say: Callable[[str], None]) -> list[str]:
    """Return the table of all images."""
    lines = [
        "| image | bytes sent, image → crop | server CPU, image → crop | crop ÷ image (range) |"
        " caller's CPU for the crop |",
        "|---|---|---|---|---|",
    ]
    arguments = ("--decode-threads", "1", "--max-message-bytes", str(MAX_MESSAGE_BYTES))
    with server(*DECODING, *arguments) as (address, pid):
        async with AsyncClient(address) as client:
            preprocess = await client.preprocessor()
        async with grpc.aio.insecure_channel(address) as channel:
            for name, image in images().items():
                whole, crop = Way(request_of(image)), Way(request_of(preprocess(image)))
                ratio, least, most = await compare(channel, pid, whole, crop, rounds)
                cpu = [statistics.median(way.cpu_ms) for way in (whole, crop)]
                sent = [f"{len(way.request) / 1e3:,.0f}" for way in (whole, crop)]
                lines.append(
                    f"| {name} | {sent[0]} → {sent[1]} kB |"
                    f" {cpu[0]:.2f} → {cpu[1]:.2f} ms | {ratio:.3f} ({least:.3f} to {most:.3f}) |"
                    f" {caller_ms(preprocess, image):.1f} ms |"
                )
                say(lines[-1])
    return lines


def main() -> None:
    """Measure, print, and write if that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many")
    parser.add_argument(
        "--write", action="store_true", help="into docs/how-to/preprocess-at-the-client.md"
    )
    options = parser.parse_args()
    where = f"{page.where()} {options.rounds} rounds."
    print(where)
    lines = asyncio.run(table(options.rounds, lambda line: print(line, flush=True)))
    if options.write:
        page.write("preprocess", "\n".join([where, "", *lines]), PAGE)


if __name__ == "__main__":
    main()
