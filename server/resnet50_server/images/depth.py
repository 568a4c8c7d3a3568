"""Grey samples deeper than 8 bits: scaled to 8 bits by what the file says is black and white."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet50_server.errors import InvalidImage

from .decode_guard import FIELD
from .tiff import grey_levels

_STRIP_ROWS = 256


def grey_of_8_bits(opened: Image.Image) -> Image.Image:
    """Scale deep grey to 8 bits, black becoming 0 and white 255.

    A PNG of 16 bits has its white at 65535 whatever its sBIT says: by the standard, encoders scale
    samples of fewer bits to all 16.

    Args:
        opened: A decoded image of mode I, I;16 or F.

    Returns:
        Mode L; LA if one value of a PNG is transparent.

    Raises:
        InvalidImage: Nothing says which value is white.
    """
    levels = _levels(opened)
    if levels is None:
        raise InvalidImage(
            FIELD,
            f"has {_samples(opened)} ({opened.format}, mode {opened.mode}), and nothing in it says"
            " which value is white; send 8 or 16 bits a channel, unsigned",
            kind="unsupported",
        )
    black, white = levels
    deep = np.asarray(opened)
    grey = Image.fromarray(_scaled(deep, black, white))
    transparent = opened.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(deep == transparent, 0, 255).astype(np.uint8)))
    return grey


def _levels(opened: Image.Image) -> tuple[float, float] | None:
    """Return which values are black and white; None if nothing says so."""
    if opened.format == "TIFF":
        return None if opened.mode == "F" else grey_levels(opened)
    # Older Pillow versions read a 16-bit PNG as mode "I".
    return (0.0, 65535.0) if opened.mode.startswith("I;16") or opened.format == "PNG" else None


def _samples(opened: Image.Image) -> str:
    """Return what an image's samples are, in words."""
    bits = getattr(opened, "tag_v2", {}).get(258, (32,))
    return "signed 16-bit pixels" if bits == (16,) else "32-bit pixels"


def _scaled(deep: NDArray[np.generic], black: float, white: float) -> NDArray[np.uint8]:
    """Scale to 0..255, strip by strip, so that the float intermediates never weigh much."""
    scaled = np.empty(deep.shape, dtype=np.uint8)
    factor = np.float32(255.0 / (white - black))
    for top in range(0, deep.shape[0], _STRIP_ROWS):
        strip = slice(top, top + _STRIP_ROWS)
        levels = (deep[strip].astype(np.float32) - np.float32(black)) * factor
        scaled[strip] = np.rint(levels, out=levels).clip(0, 255)
    return scaled
