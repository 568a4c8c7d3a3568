"""The images to send: files, or generated ones that are as hard to decode as photographs."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet50.v1 import image_pb2
from resnet50_bulk.image_files import STDIN, LeftOut, find_images
from resnet50_cli.output import report_left_out
from resnet50_client.images import to_image

from .plan import Plan

# The average ImageNet image has this size, and 110 KB as a JPEG file.
WIDTH, HEIGHT = 500, 375
JPEG_QUALITY = 90
# Each process keeps all images serialized, to exclude reading files from the measurement; this is
# the limit for all processes together.
MOST_BYTES = 2**30


def images_of(plan: Plan, size: tuple[int, int]) -> list[image_pb2.Image]:
    """Return the images of a plan as protobuf messages.

    Args:
        plan: The benchmark.
        size: Height and width of raw frames in pixels; those after the variant's resize, so that
            the server only copies them.

    Raises:
        OSError: A file cannot be read.
        ValueError: The files exceed `MOST_BYTES`, or one to be sent raw cannot be decoded.
    """
    images: list[image_pb2.Image] = []
    total = 0
    for encoded in _read(plan.files) if plan.files else _generated(plan):
        image = to_image(_pixels(encoded, size) if plan.raw else encoded)
        total += image.ByteSize()
        if total > MOST_BYTES // plan.processes:
            raise ValueError(
                f"files: more than {MOST_BYTES // plan.processes // 2**20} MiB of images, which"
                " each process keeps in memory; name fewer files"
            )
        images.append(image)
    return images


def _read(files: tuple[str, ...]) -> Iterator[bytes]:
    left_out = LeftOut()
    for path in find_images(files, left_out):
        yield sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    report_left_out(left_out)


def _generated(plan: Plan) -> Iterator[bytes]:
    for number in range(plan.generated):
        yield photograph(plan.seed + number)


def photograph(seed: int) -> bytes:
    """Generate a JPEG image with the size and spectrum of a photograph, about 110 KB.

    The amplitude spectrum of photographs is about 1 / f (Field, 1987), so that decoding takes as
    long as for a real one, unlike noise or a gradient.
    """
    import PIL.Image

    draw = np.random.default_rng(seed)
    rows = np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT
    columns = np.fft.rfftfreq(WIDTH)[None, :] * WIDTH
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf

    def plane() -> NDArray[np.float64]:
        real, imaginary = draw.standard_normal((2, *frequency.shape))
        return np.fft.irfft2((real + 1j * imaginary) / frequency**1.1, (HEIGHT, WIDTH))

    luma, red, green = plane(), plane(), plane()
    pixels = np.stack([luma + 0.35 * red, luma + 0.1 * green, luma - 0.35 * red], axis=-1)
    pixels = np.clip(np.rint(pixels / pixels.std() * 55 + 120), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _pixels(encoded: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode an image to uint8 [height, width, 3]."""
    import PIL.Image
    import PIL.ImageOps

    try:
        picture = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded))).convert("RGB")
        return np.asarray(PIL.ImageOps.fit(picture, size[::-1]))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"files: an image cannot be decoded for --raw: {error}") from error
