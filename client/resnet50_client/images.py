"""Conversion of all supported inputs to protobuf images, without importing PIL or torch."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Protocol,
    TypeAlias,
    TypeGuard,
    cast,
    runtime_checkable,
)

import numpy as np
from numpy.typing import NDArray

from resnet50.v1 import image_pb2

from ._pil import is_pil_image, pil_array
from .errors import InvalidImageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video, with its pixel format.

    Attributes:
        image: uint8 pixels in `pixel_format`, or an encoded image's bytes.
        pixel_format: Layout, as for `classify`, e.g. "I420"; None for encoded images and RGB.
        time_s: Presentation time in seconds from the start of the video.
        number: Position in the video, from 0, including omitted frames.
        color_matrix: As of `RawImage`.
        color_range: As of `RawImage`.
    """

    image: NDArray[np.uint8] | bytes
    pixel_format: str | None
    time_s: float
    number: int
    color_matrix: str | None = None
    color_range: str | None = None


@dataclass(frozen=True, eq=False)
class RawImage:
    """Pixels of one image with their layout and colours, e.g. a frame of a camera.

    Attributes:
        pixels: uint8 array in `pixel_format`; see `ImageInput`.
        pixel_format: "RGB", "BGR", "RGBA", "GRAY", "NV12" or "I420".
        color_matrix: Of "NV12" and "I420": "BT601", "BT709" or "BT2020"; None for BT.601.
        color_range: Of "NV12" and "I420": "limited" or "full"; None for limited.
    """

    pixels: NDArray[np.uint8]
    pixel_format: str
    color_matrix: str | None = None
    color_range: str | None = None


@runtime_checkable
class PILImage(Protocol):
    """Type of `PIL.Image.Image` for type checkers and `typing.get_type_hints`.

    The SDK does not need Pillow, so its types must resolve without it.
    """

    @property
    def mode(self) -> str:
        """Its pixels' kind, e.g. "RGB"."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""

    def getexif(self) -> Any:
        """Return its EXIF tags."""


@runtime_checkable
class TorchTensor(Protocol):
    """Type of `torch.Tensor` for type checkers and `typing.get_type_hints`; as `PILImage`."""

    @property
    def ndim(self) -> int:
        """The number of its axes."""

    def detach(self) -> Any:
        """Return it without its gradient."""

    def cpu(self) -> Any:
        """Return it in the memory of the CPU."""


ImageInput: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | NDArray[np.uint8]
    | RawImage
    | VideoFrame
    | PILImage
    | TorchTensor
)
"""Inputs that `classify` and `embed` accept as an image:

* a path (`str` or `os.PathLike`) to an image file;
* an image file's content: `bytes`, `bytearray`, `memoryview`, or a binary file object;
* a `PIL.Image.Image`; its EXIF orientation is applied, as it is for files;
* a numpy array, uint8 [height, width, 3] RGB, [height, width, 4] RGBA or [height, width] grey;
  `pixel_format` names other layouts, e.g. "BGR" for OpenCV, "NV12" or "I420" for camera frames of
  [height * 3 / 2, width]. Raw pixels as bytes become one with `np.frombuffer(content,
  np.uint8).reshape(height, width, 3)`;
* an encoded file in a numpy array, uint8 [bytes] or [bytes, 1], as `cv2.imencode` returns it;
* a `RawImage`, which names the layout of its array, and the matrix and the range of YUV;
* a `VideoFrame`, as `frames_from_video` yields;
* a torch tensor, uint8 [3, height, width] RGB or [1, height, width] grey, on any device.
"""

# Number of channels of each format; and the default format by number of channels.
_CHANNELS = {"RGB": 3, "BGR": 3, "RGBA": 4, "GRAY": 1}
_FORMAT_OF_CHANNELS = {3: "RGB", 4: "RGBA", 1: "GRAY"}
PLANAR_FORMATS = ("NV12", "I420")
PIXEL_FORMATS = (*_CHANNELS, *PLANAR_FORMATS)
COLOR_MATRICES = ("BT601", "BT709", "BT2020")
COLOR_RANGES = ("limited", "full")
# Larger images are copied and hashed in a thread rather than on the event loop: 1 MiB takes about
# a millisecond.
QUICK_BYTES = 2**20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class RawPixels:
    """The pixels of one image, as the contract's `RawImage` has them.

    Attributes:
        width: In pixels.
        height: In pixels.
        pixel_format: "RGB", "BGR", "RGBA", "GRAY", "NV12" or "I420".
        pixels: Row by row, without padding.
        color_matrix: As of `RawImage`.
        color_range: As of `RawImage`.
    """

    width: int
    height: int
    pixel_format: str
    pixels: bytes
    color_matrix: str | None = None
    color_range: str | None = None


def read_image(image: ImageInput, pixel_format: str | None = None) -> bytes | RawPixels:
    """Return what is sent of an image: a file's content as it is, or raw pixels.

    Args:
        image: See `ImageInput`.
        pixel_format: For arrays only: "RGB", "BGR", "RGBA", "GRAY", "NV12" or "I420".

    Raises:
        TypeError: It is of no type that is known here.
        InvalidImageError: Its shape or dtype is not one of those above.
        OSError: The file cannot be read.
    """
    if isinstance(image, (RawImage, VideoFrame)):
        pixels = image.pixels if isinstance(image, RawImage) else image.image
        return _with_colors(read_image(pixels, image.pixel_format), image)
    if pixel_format is not None and pixel_format not in PIXEL_FORMATS:
        raise InvalidImageError(
            f"pixel_format: is {pixel_format!r}, must be one of {', '.join(PIXEL_FORMATS)}",
            field="image.raw.pixel_format",
        )
    array = _array(image)
    if pixel_format is None and _is_file(array):
        return array.tobytes()
    if array is not None:
        return _raw(array, pixel_format)
    if pixel_format is not None:
        raise InvalidImageError(
            f"pixel_format: {pixel_format!r} goes with an array only; a file says itself what it"
            " holds. Raw pixels become an array with np.frombuffer(content, np.uint8).reshape("
            "height, width, channels)",
            field="image",
        )
    return _encoded(image)


def put_image(message: image_pb2.Image, content: bytes | RawPixels) -> None:
    """Put what `read_image` gave into a message, where it is: large images are copied once."""
    if isinstance(content, bytes):
        message.encoded = content
        return
    raw = message.raw
    raw.width, raw.height = content.width, content.height
    raw.pixel_format = image_pb2.PixelFormat.Value(f"PIXEL_FORMAT_{content.pixel_format}")
    raw.pixels = content.pixels
    if content.color_matrix is not None:
        raw.color_matrix = image_pb2.ColorMatrix.Value(f"COLOR_MATRIX_{content.color_matrix}")
    if content.color_range is not None:
        raw.color_range = image_pb2.ColorRange.Value(f"COLOR_RANGE_{content.color_range.upper()}")


def to_image(image: ImageInput, pixel_format: str | None = None) -> image_pb2.Image:
    """Return the image as the contract carries it; arguments and errors as of `read_image`."""
    message = image_pb2.Image()
    put_image(message, read_image(image, pixel_format))
    return message


def is_quickly_read(image: ImageInput) -> bool:
    """Return True if `read_image` is fast: no file to read, and little to copy."""
    if isinstance(image, (RawImage, VideoFrame)):
        image = image.pixels if isinstance(image, RawImage) else image.image
    if isinstance(image, (memoryview, np.ndarray)):
        return image.nbytes <= QUICK_BYTES
    return isinstance(image, (bytes, bytearray)) and len(image) <= QUICK_BYTES


def _with_colors(content: bytes | RawPixels, image: RawImage | VideoFrame) -> bytes | RawPixels:
    """Add the matrix and the range of an image to what is sent of it.

    Raises:
        InvalidImageError: One is unknown, or the image is not YUV.
    """
    for name, known in (("color_matrix", COLOR_MATRICES), ("color_range", COLOR_RANGES)):
        value = getattr(image, name)
        if value is None:
            continue
        reason = ""
        if value not in known:
            reason = f"must be one of {', '.join(known)}, or None"
        elif isinstance(content, bytes) or content.pixel_format not in PLANAR_FORMATS:
            reason = f"goes with pixel_format {' and '.join(PLANAR_FORMATS)} only; leave it out"
        if reason:
            raise InvalidImageError(f"{name}: is {value!r}, {reason}", field=f"image.raw.{name}")
        content = replace(cast("RawPixels", content), **{name: value})
    return content


def is_url(path: str) -> bool:
    """Return True if a path is a URL, by its scheme."""
    return _URL.match(path) is not None


def _encoded(image: Any) -> bytes:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        if isinstance(image, str) and is_url(image):
            # An error about a path would show all of it, and it may contain a password.
            raise InvalidImageError(
                "image: is a URL, which the SDK does not fetch: fetch it and pass its content; for"
                " frames of a video or a camera use frames_from_video",
                field="image",
            )
        with open(image, "rb") as file:
            return file.read()
    if callable(getattr(image, "read", None)):
        content = image.read()
        if isinstance(content, bytes):
            return content
        if inspect.isawaitable(content):
            if inspect.iscoroutine(content):
                content.close()  # never awaited, which Python would warn about
            raise TypeError(
                f"image: read() of {type(image).__name__} is asynchronous; pass its result:"
                " `await file.read()`"
            )
        raise TypeError(
            f"image: read() returned {type(content).__name__}, not bytes: open the file with 'rb'"
        )
    raise TypeError(
        f"image: {type(image).__name__} is not a path, bytes, a binary file, a PIL image, a numpy"
        " array or a torch tensor"
    )


def is_tensor(image: Any) -> TypeGuard[torch.Tensor]:
    """Return True for a torch tensor, without importing torch."""
    torch_module = sys.modules.get("torch")
    return torch_module is not None and isinstance(image, torch_module.Tensor)


def _array(image: Any) -> NDArray[Any] | None:
    """Convert pixels, or an encoded file in an array, to a numpy array; None for other types."""
    if isinstance(image, np.ndarray):
        return image
    if is_pil_image(image):
        return pil_array(image)
    if is_tensor(image):
        return _tensor_array(image)
    return None


def _is_file(array: NDArray[Any] | None) -> TypeGuard[NDArray[np.uint8]]:
    """Return True if an array contains an encoded file, as one row or one column of bytes.

    An image one pixel wide needs `pixel_format`; `cv2.imencode` returns columns before 4.5.
    """
    return (
        array is not None
        and array.dtype == np.uint8
        and array.size > 1
        and (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1))
    )


def _tensor_array(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3):
        array: NDArray[Any] = tensor.detach().permute(1, 2, 0).cpu().numpy()
        return array
    raise InvalidImageError(
        f"image: a tensor of shape {list(tensor.shape)} is not [3, height, width] or"
        " [1, height, width]; send one image at a time",
        field="image",
    )


def _raw(array: NDArray[Any], pixel_format: str | None) -> RawPixels:
    def refuse(reason: str) -> InvalidImageError:
        return InvalidImageError(
            f"image: an array of shape {list(array.shape)} and dtype {array.dtype} {reason}",
            field="image.raw",
        )

    if array.dtype != np.uint8:
        raise refuse(
            "does not contain 8-bit pixels; convert it to uint8, 0 to 255; the server resizes and"
            " normalizes"
        )
    if array.ndim == 2 and pixel_format is not None and pixel_format in PLANAR_FORMATS:
        return _planar(array, pixel_format, refuse)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.size == 0:
        raise refuse("is not one image; send one at a time, as [height, width, channels]")
    channels = array.shape[2]
    name = pixel_format or _FORMAT_OF_CHANNELS.get(channels)
    if name is None:
        raise refuse(
            "does not have 1, 3 or 4 channels in its last axis; transpose it to [height, width,"
            " channels]"
        )
    if _CHANNELS.get(name) != channels:
        known = ", ".join([*_CHANNELS, *PLANAR_FORMATS])
        raise refuse(
            f"does not match pixel_format {name!r}"
            + (f" with its {_CHANNELS[name]} channels" if name in _CHANNELS else f" ({known})")
        )
    return RawPixels(
        width=array.shape[1],
        height=array.shape[0],
        pixel_format=name,
        pixels=array.tobytes(),
    )


def _planar(
    array: NDArray[np.uint8], name: str, refuse: Callable[[str], InvalidImageError]
) -> RawPixels:
    """Convert [height * 3 / 2, width]: the luma plane above the chroma planes, as in OpenCV."""
    rows, width = array.shape
    if rows % 3 or width % 2 or array.size == 0:
        raise refuse(f"is not {name} of [height * 3 / 2, width] with even sides")
    return RawPixels(
        width=width,
        height=rows // 3 * 2,
        pixel_format=name,
        pixels=array.tobytes(),
    )
