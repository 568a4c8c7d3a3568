"""The background that transparent pixels are composited on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

Color: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

_NAMED: dict[str, Color] = {"white": (255, 255, 255), "black": (0, 0, 0)}
_HEX = re.compile("#[0-9A-Fa-f]{6}")
RULE = 'must be "white", "black", "#rrggbb", or "none" to drop alpha'


@dataclass(frozen=True)
class Background:
    """The background of transparent pixels.

    Attributes:
        color: The colour; None drops alpha and shows the pixels' own colours, as torchvision's
            pipeline does (Pillow's `convert("RGB")`).
    """

    color: Color | None = None


def parse_background(text: str) -> Background:
    """Read a background as the contract and `variant.json` spell it.

    Raises:
        ValueError: It is none; the message says what it must be.
    """
    if text == "none":
        return Background()
    if text in _NAMED:
        return Background(_NAMED[text])
    if not _HEX.fullmatch(text):
        raise ValueError(f"is {text[:32]!r}, {RULE}")
    red, green, blue = bytes.fromhex(text[1:])
    return Background((red, green, blue))


def spell_background(color: Color | None) -> str:
    """Return a background as the contract spells it."""
    return "none" if color is None else f"#{bytes(color).hex()}"


def has_alpha(image: Image.Image) -> bool:
    """Return whether an image has transparent pixels, or may have."""
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def composite(image: Image.Image, color: Color) -> Image.Image:
    """Composite an image with alpha on a background.

    Args:
        image: Mode RGBA, alpha not premultiplied.
        color: The background.

    Returns:
        Mode RGB. Pixels of alpha 0 are the background whatever colour they hide.
    """
    canvas = Image.new("RGB", image.size, color)
    canvas.paste(image, mask=image)
    return canvas
