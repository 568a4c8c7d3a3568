"""Raw pixels to RGB, as the server converts them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._arrays import CHANNELS, PLANAR_FORMATS, RawPixels
from .geometry import Geometry
from .resize import resize

# Weights of red and blue in luma: ITU-R BT.601-7 section 2.5.1, BT.709-6 section 3.2, BT.2020-2
# table 4 (non-constant luminance).
_LUMA_WEIGHTS = {"BT601": (0.299, 0.114), "BT709": (0.2126, 0.0722), "BT2020": (0.2627, 0.0593)}
_STRIP_ROWS = 32  # even, as two rows share their chroma


def raw_to_rgb(raw: RawPixels, geometry: Geometry, background: str) -> NDArray[np.uint8]:
    """Convert raw pixels to RGB.

    Args:
        raw: The pixels.
        geometry: The size to which planes of YUV are resized before they are converted, as the
            server does where it makes no difference but for rounding.
        background: "#rrggbb" that alpha is composited on; "none" drops it.

    Returns:
        uint8 [height, width, 3], of the image's size or of the resized one.
    """
    content = np.frombuffer(raw.pixels, dtype=np.uint8)
    if raw.pixel_format in PLANAR_FORMATS:
        return _planar(raw, content, geometry)
    pixels = content.reshape(raw.height, raw.width, CHANNELS[raw.pixel_format])
    if raw.pixel_format == "BGR":
        return np.ascontiguousarray(pixels[:, :, ::-1])
    return to_rgb(pixels, background)


def to_rgb(pixels: NDArray[np.uint8], background: str) -> NDArray[np.uint8]:
    """Convert grey, RGB or RGBA pixels to uint8 [height, width, 3].

    Args:
        pixels: uint8 [height, width] or [height, width, 1, 3 or 4].
        background: "#rrggbb" that alpha is composited on; "none" drops it.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] == 1:
        return pixels.repeat(3, axis=2)
    if pixels.shape[2] == 3:
        return pixels
    if background == "none":
        return np.ascontiguousarray(pixels[:, :, :3])
    image = Image.fromarray(np.ascontiguousarray(pixels))
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image)
    return np.asarray(canvas)


def _planar(raw: RawPixels, content: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Convert the planes of NV12 or I420."""
    size = (raw.height, raw.width)
    half = (raw.height // 2, raw.width // 2)
    luma = content[: raw.height * raw.width].reshape(size)
    rest = content[raw.height * raw.width :]
    if raw.pixel_format == "NV12":
        chroma = rest.reshape(*half, 2)
    else:
        chroma = rest.reshape(2, *half).transpose(1, 2, 0)
    convert = _Conversion(raw.color_matrix or "BT601", raw.color_range == "full")
    resized = geometry.resized(size)
    # Smaller planes would have other pixels where they are not averaged, or are padded.
    is_direct = geometry.transform.antialias and not geometry.needs_padding(size)
    is_smaller = resized[0] < raw.height and resized[1] < raw.width
    if is_direct and is_smaller and not geometry.resizes_part(size):
        small = resize(luma[:, :, None], resized, geometry)[:, :, 0]
        return convert(small, resize(chroma, resized, geometry))
    rgb = np.empty((*size, 3), dtype=np.uint8)
    for top in range(0, raw.height, _STRIP_ROWS):
        strip, shared = slice(top, top + _STRIP_ROWS), slice(top // 2, (top + _STRIP_ROWS) // 2)
        doubled = chroma[shared].repeat(2, axis=0).repeat(2, axis=1)
        rgb[strip] = convert(luma[strip], doubled)
    return rgb


class _Conversion:
    """Conversion of 8-bit YUV to RGB by the equations of ITU-T H.273 section 8.3.

    Args:
        matrix: "BT601", "BT709" or "BT2020".
        is_full: Levels are 0 to 255, rather than 16 to 235 and 240.
    """

    def __init__(self, matrix: str, is_full: bool) -> None:
        red, blue = _LUMA_WEIGHTS[matrix]
        green = 1.0 - red - blue
        self._black = 0.0 if is_full else 16.0
        self._luma = 1.0 if is_full else 255 / 219
        chroma = [
            [0.0, -2.0 * blue * (1.0 - blue) / green, 2.0 * (1.0 - blue)],
            [2.0 * (1.0 - red), -2.0 * red * (1.0 - red) / green, 0.0],
        ]
        scale = 1.0 if is_full else 255 / 224
        self._chroma = (np.array(chroma) * scale).astype(np.float32)

    def __call__(self, luma: NDArray[np.uint8], chroma: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert luma [height, width] and chroma [height, width, 2] to RGB."""
        rgb = (chroma.astype(np.float32) - 128.0) @ self._chroma
        rgb += ((luma.astype(np.float32) - self._black) * self._luma)[..., None]
        converted: NDArray[np.uint8] = np.rint(rgb, out=rgb).clip(0, 255).astype(np.uint8)
        return converted
