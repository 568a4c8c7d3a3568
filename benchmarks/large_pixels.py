"""Ways to send the pixels of a large photo: python -m benchmarks.large_pixels.

    python -m benchmarks.large_pixels [--rounds 5]

A photo of 24 megapixels as its JPEG, as raw pixels, and encoded without loss by the client: bytes,
CPU time of the client to make them, and time of a call to a server on this machine that decodes and
whose engine takes no time. docs/adr/0038-large-pixels-in-chunks.md.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from resnet50_client import Client
from tests.support.pictures import PHOTOS
from tests.support.serving import server_processes

from . import page
from .large_photos import large_photo

WIDTH, HEIGHT = 6000, 4000
ENGINE = ("--engine", "timed", "--timed-alpha-ms", "0", "--timed-beta-ms", "0")
Way = Callable[[Image.Image], bytes]
LIMITS = ("--max-image-bytes", str(2**27), "--decode-timeout-s", "60")


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """Return an image as a file."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def pixels(image: Image.Image) -> bytes:
    """Return raw pixels with their digest made, as the SDK sends them."""
    content = np.asarray(image).tobytes()
    hashlib.sha256(content).digest()
    return content


def given_file(content: bytes, image: Image.Image) -> bytes:
    """Return a file that is there."""
    return content


WAYS: dict[str, Way] = {
    "raw pixels": pixels,
    "PNG, level 1": lambda image: encoded(image, "PNG", compress_level=1),
    "PNG, level 6": lambda image: encoded(image, "PNG"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many")
    rounds = parser.parse_args().rounds
    print(page.where())
    print("\n| photo | sent as | MB | client's CPU, ms | call, ms |\n|---|---|---|---|---|")
    with server_processes() as start:
        server = start("--variants", "IMAGENET1K_V2", *ENGINE, *LIMITS).wait_until_listening()
        with Client(server, timeout_s=120) as client:
            for photo in PHOTOS:
                jpeg = large_photo(photo, WIDTH, HEIGHT)
                image = Image.open(io.BytesIO(jpeg))
                image.load()
                ways: dict[str, Way] = {"its JPEG": functools.partial(given_file, jpeg), **WAYS}
                for name, make in ways.items():
                    cpu_ms, call_ms = [], []
                    for _ in range(rounds):
                        began = time.process_time()
                        content = make(image)
                        cpu_ms.append(1e3 * (time.process_time() - began))
                        given = np.asarray(image) if name == "raw pixels" else content
                        began = time.perf_counter()
                        client.classify(given)
                        call_ms.append(1e3 * (time.perf_counter() - began))
                    print(
                        f"| {photo.stem} | {name} | {len(content) / 1e6:.1f} |"
                        f" {statistics.median(cpu_ms):.0f} | {statistics.median(call_ms):.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
