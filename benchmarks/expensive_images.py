"""The most expensive images within the limits: as many pixels as allowed, from few bytes.

    python -m benchmarks.expensive_images

Time and peak memory of decoding each in this process, on one thread; docs/how-to/secure.md.
Linux only.
"""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import torch
from PIL import Image

from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import Transform

SIDES = (8000, 6250)
TRANSFORM = Transform(232, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# Twice the pixels of the images: by default HEIC with alpha is refused above 42 million pixels.
LIMITS = ImageLimits(max_pixels=100_000_000, timeout_s=600)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    """Return a picture as a file."""
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def paeth() -> bytes:
    """Return a PNG in RGBA each of whose rows has the slowest filter, which Pillow never writes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = (b"\4" + bytes(4 * SIDES[0])) * SIDES[1]
    header = struct.pack(">IIBBBBB", *SIDES, 8, 6, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def images() -> Iterator[tuple[str, bytes]]:
    """Give a flat picture in every format, and in what is expensive of each."""
    flat = Image.new("RGB", SIDES)
    deep = Image.fromarray(np.zeros(SIDES[::-1], np.uint16))
    yield "JPEG", encoded(flat, "JPEG")
    yield "JPEG, progressive", encoded(flat, "JPEG", progressive=True, subsampling=0)
    yield "JPEG, CMYK", encoded(flat.convert("CMYK"), "JPEG")
    yield "PNG", encoded(flat, "PNG")
    yield "PNG, 16 bits", encoded(deep, "PNG")
    yield "PNG, Paeth filter", paeth()
    yield "PNG, RGBA", encoded(flat.convert("RGBA"), "PNG")
    yield "WebP, lossless RGBA", encoded(flat.convert("RGBA"), "WEBP", lossless=True)
    yield "WebP", encoded(flat, "WEBP")
    yield "AVIF", encoded(flat, "AVIF", speed=10)
    yield "AVIF, RGBA, 4:4:4", encoded(flat.convert("RGBA"), "AVIF", speed=10, subsampling="4:4:4")
    for name, picture, options in (
        ("HEIC", flat, {}),
        ("HEIC, RGBA, 4:4:4", flat.convert("RGBA"), {"chroma": 444}),
    ):
        out = io.BytesIO()
        pillow_heif.from_pillow(picture).save(out, quality=50, **options)
        yield name, out.getvalue()
    yield "GIF", encoded(flat, "GIF")
    yield "TIFF, LZMA", encoded(flat, "TIFF", compression="lzma")
    yield "TIFF, G4", encoded(flat.convert("1"), "TIFF", compression="group4")


def memory_mib(name: str) -> float:
    """Return a line of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Decode each and print what it took."""
    torch.set_num_threads(1)
    pixels = SIDES[0] * SIDES[1]
    print(f"{'image of 50 million pixels':28}{'bytes':>10}{'CPU s':>8}{'peak bytes a pixel':>20}")
    for name, content in images():
        Path("/proc/self/clear_refs").write_text("5")
        before, started = memory_mib("VmRSS"), time.process_time()
        decode(content, TRANSFORM, LIMITS)
        took = time.process_time() - started
        grown = (memory_mib("VmHWM") - before) * 2**20 / pixels
        print(f"{name:28}{len(content):10}{took:8.2f}{grown:20.1f}")


if __name__ == "__main__":
    main()
