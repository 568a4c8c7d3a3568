"""Pixels of PIL images, without importing PIL: before its import there are none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidImageError

if TYPE_CHECKING:
    import PIL.Image

_SENT_AS_THEY_ARE = ("RGB", "RGBA", "L")
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


def is_pil_image(image: Any) -> TypeGuard[PIL.Image.Image]:
    """Return True for a PIL image."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(image, pil.Image)


def pil_array(image: PIL.Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an image, upright.

    Returns:
        uint8 [height, width, 3] RGB, [height, width, 4] RGBA if it has alpha, or [height, width]
        grey.

    Raises:
        InvalidImageError: Its file is broken, or its pixels have no known white level.
        OSError: Its file cannot be read.
    """
    try:
        return _pixels(_upright(image))
    except (InvalidImageError, OSError, MemoryError):
        raise
    except Exception as error:  # Pillow raises many kinds for broken files, and for its modes
        raise InvalidImageError(
            f"image: a PIL image of mode {image.mode} cannot be read"
            f" ({type(error).__name__}: {error}); convert it to RGB",
            field="image",
        ) from error


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Apply an image's EXIF orientation; one whose EXIF cannot be read stays as it is stored."""
    from PIL import ExifTags, Image

    image.load()  # its own errors are not about EXIF
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # many kinds, struct.error and SyntaxError among them; the pixels are whole
        return image
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation)
    return image if turn is None else image.transpose(turn)


def _pixels(image: PIL.Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        # convert() clips 16-bit pixels instead of scaling them.
        deep: NDArray[np.uint16] = np.asarray(image)
        scaled: NDArray[np.uint8] = np.rint(deep.astype(np.float32) / 257.0).astype(np.uint8)
        return scaled
    if image.mode in ("I", "F"):
        raise InvalidImageError(
            f"image: the white level of a PIL image of mode {image.mode} is undefined; convert it"
            " to RGB, L or I;16",
            field="image",
        )
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())  # premultiplied ones convert to no other mode
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")  # the server composites it, or drops alpha
    elif image.mode not in _SENT_AS_THEY_ARE:
        image = image.convert("RGB")
    return np.asarray(image)
