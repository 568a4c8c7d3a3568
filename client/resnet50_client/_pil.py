"""Pixels and files of PIL images, without importing PIL: before its import there are none."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidImageError

if TYPE_CHECKING:
    import PIL.Image

# Larger images are uploaded in chunks; a JPEG's pixels are about ten times its file.
MANY_PIXELS = 2**20
_SENT_AS_THEY_ARE = ("RGB", "RGBA", "L")
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


def is_pil_image(image: Any) -> TypeGuard[PIL.Image.Image]:
    """Return True for a PIL image."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(image, pil.Image)


def unread_jpeg(image: PIL.Image.Image) -> bytes | None:
    """Return the file of a large JPEG that Pillow has opened but not decoded; None otherwise.

    The server decodes it to the same pixels, and also those that have more than it takes as pixels.
    """
    file: Any = getattr(image, "fp", None)
    undecoded = bool(getattr(image, "tile", None))  # emptied by decoding, before any change
    many = image.width * image.height > MANY_PIXELS
    if file is None or not undecoded or not many or image.format not in ("JPEG", "MPO"):
        return None
    try:
        position = file.tell()
        file.seek(0)
        content: bytes = file.read()
        file.seek(position)
    except (OSError, ValueError):  # closed, or not seekable; decoding it may say why
        return None
    return content if _is_same(image, content) else None


def _is_same(image: PIL.Image.Image, content: bytes) -> bool:
    """Return False if an image was changed since it was opened: another frame, size or EXIF."""
    from PIL import Image

    if len(content) > image.width * image.height:
        return False  # not much smaller than its pixels
    try:
        with Image.open(io.BytesIO(content)) as file:
            return (file.size, file.mode) == (image.size, image.mode) and (
                image.tell() == 0 and _orientation(file) == _orientation(image)
            )
    except MemoryError:
        raise
    except Exception:  # many kinds, and warnings that are errors; the pixels are sent then
        return False


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
    from PIL import Image

    image.load()  # its own errors are not about EXIF
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: PIL.Image.Image) -> Any:
    """Return the EXIF orientation; 1, which needs no turn, if the EXIF cannot be read."""
    from PIL import ExifTags

    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # many kinds, struct.error and SyntaxError among them; the pixels are whole
        return 1


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
