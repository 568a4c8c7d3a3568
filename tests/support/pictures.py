"""Pictures that tests make; none of the project's tests needs a file from elsewhere."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image


def package_folder(name: str) -> Path:
    """Return the folder of an installed package, without the seconds that importing it takes."""
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is not installed"
    return Path(spec.origin).parent


# Two real photographs, 640 x 427, that scikit-learn ships.
PHOTOS = [
    package_folder("sklearn") / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")
]


def picture(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """Make a picture whose channels differ and which has no symmetry."""
    red = Image.linear_gradient("L").resize((width, height))
    green = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize((width, height))
    blue = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, blue)).convert(mode)


def photo_like(width: int, height: int, seed: int = 0) -> Image.Image:
    """Make a picture with detail at all scales, as photographs have."""
    draw = np.random.default_rng(seed)
    canvas = np.zeros((height, width, 3))
    for octave in range(1, 8):
        side = 2**octave
        noise = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
        scaled = noise.resize((width, height), Image.Resampling.BICUBIC)
        canvas += np.asarray(scaled, dtype=np.float64) / octave
    canvas = (canvas - canvas.min()) / (canvas.max() - canvas.min()) * 255
    return Image.fromarray(np.rint(canvas).astype(np.uint8))


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """Return a picture as a file of `format`."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def heic(image: Image.Image, **options) -> bytes:
    """Return a picture as a HEIC file."""
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()
