"""Conversion of all supported inputs to protobuf images, without importing PIL or torch."""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import dataclass, replace
from typing import (
    IO,
    Any,
    Literal,
    Protocol,
    TypeAlias,
    cast,
    runtime_checkable,
)

import numpy as np
from numpy.typing import NDArray

from resnet50.v1 import image_pb2

from ._arrays import (
    PIXEL_FORMATS,
    PLANAR_FORMATS,
    array_of,
    is_file,
    raw_pixels,
)
from ._arrays import (
    RawPixels as RawPixels,
)
from ._pil import is_pil_image, unread_jpeg
from ._preprocessed import (
    ImageContent,
    PreprocessedImage,
    PreprocessedPixels,
    preprocessed_pixels,
)
from .errors import InvalidImageError

PixelFormat: TypeAlias = Literal["RGB", "BGR", "RGBA", "GRAY", "NV12", "I420"]
"""Layout of the pixels of an array."""


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


@runtime_checkable
class AsyncFile(Protocol):
    """A binary file that is read asynchronously, e.g. an `UploadFile` of FastAPI or Starlette."""

    async def read(self, size: int = -1, /) -> bytes:
        """Return the rest of its content."""


ImageInput: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | NDArray[np.uint8]
    | RawImage
    | VideoFrame
    | PreprocessedImage
    | PILImage
    | TorchTensor
)
"""Inputs that `classify` and `embed` accept as an image:

* a path (`str` or `os.PathLike`) to an image file;
* an image file's content: `bytes`, `bytearray`, `memoryview`, or a binary file object; for
  `AsyncClient` also a file whose `read` is asynchronous, e.g. an `UploadFile` of FastAPI;
* a `PIL.Image.Image`; its EXIF orientation is applied, as it is for files. Of a large JPEG that
  `PIL.Image.open` has not decoded yet, the file is sent;
* a numpy array, uint8 [height, width, 3] RGB, [height, width, 4] RGBA or [height, width] grey;
  `pixel_format` names other layouts, e.g. "BGR" for OpenCV, "NV12" or "I420" for camera frames of
  [height * 3 / 2, width]. Raw pixels as bytes become one with `np.frombuffer(content,
  np.uint8).reshape(height, width, 3)`;
* an encoded file in a numpy array, uint8 [bytes] or [bytes, 1], as `cv2.imencode` returns it;
* a `RawImage`, which names the layout of its array, and the matrix and the range of YUV;
* a `VideoFrame`, as `frames_from_video` yields;
* a `PreprocessedImage`, as `Client.preprocessor` makes it of any of the others;
* a torch tensor, uint8 [3, height, width] RGB or [1, height, width] grey, on any device.
"""

AsyncImageInput: TypeAlias = ImageInput | AsyncFile
"""Inputs of `AsyncClient`: those of `ImageInput`, and files that are read asynchronously."""

COLOR_MATRICES = ("BT601", "BT709", "BT2020")
COLOR_RANGES = ("limited", "full")
# Larger images are copied and hashed in a thread rather than on the event loop: 1 MiB takes about
# a millisecond.
QUICK_BYTES = 2**20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def read_image(image: ImageInput, pixel_format: str | None = None) -> ImageContent:
    """Return what is sent of an image: a file's content as it is, or pixels.

    Args:
        image: See `ImageInput`.
        pixel_format: For arrays only: "RGB", "BGR", "RGBA", "GRAY", "NV12" or "I420".

    Raises:
        TypeError: It is of no type that is known here.
        InvalidImageError: Its shape or dtype is not one of those above.
        OSError: The file cannot be read.
    """
    if isinstance(image, PreprocessedImage):
        return preprocessed_pixels(image)
    if isinstance(image, (RawImage, VideoFrame)):
        pixels = image.pixels if isinstance(image, RawImage) else image.image
        return _with_colors(read_image(pixels, image.pixel_format), image)
    if pixel_format is not None and pixel_format not in PIXEL_FORMATS:
        raise InvalidImageError(
            f"pixel_format: is {pixel_format!r}, must be one of {', '.join(PIXEL_FORMATS)}",
            field="image.raw.pixel_format",
        )
    if pixel_format is None and is_pil_image(image):
        file = unread_jpeg(image)
        if file is not None:
            return file
    array = array_of(image)
    if pixel_format is None and is_file(array):
        return array.tobytes()
    if array is not None:
        return raw_pixels(array, pixel_format)
    if pixel_format is not None:
        raise InvalidImageError(
            f"pixel_format: {pixel_format!r} goes with an array only; a file says itself what it"
            " holds. Raw pixels become an array with np.frombuffer(content, np.uint8).reshape("
            "height, width, channels)",
            field="image",
        )
    return _encoded(image)


def put_image(message: image_pb2.Image, content: ImageContent) -> None:
    """Put what `read_image` gave into a message, where it is: large images are copied once."""
    if isinstance(content, bytes):
        message.encoded = content
        return
    if isinstance(content, PreprocessedPixels):
        message.preprocessed.pixels = content.pixels
        message.preprocessed.transform_digest = content.transform_digest
        return
    put_layout(message.raw, content)
    message.raw.pixels = content.pixels


def put_layout(raw: image_pb2.RawImage, content: RawPixels) -> None:
    """Put everything but the pixels into a message."""
    raw.width, raw.height = content.width, content.height
    raw.pixel_format = image_pb2.PixelFormat.Value(f"PIXEL_FORMAT_{content.pixel_format}")
    if content.color_matrix is not None:
        raw.color_matrix = image_pb2.ColorMatrix.Value(f"COLOR_MATRIX_{content.color_matrix}")
    if content.color_range is not None:
        raw.color_range = image_pb2.ColorRange.Value(f"COLOR_RANGE_{content.color_range.upper()}")


def content_bytes(content: ImageContent) -> bytes:
    """Return the bytes of a file, or the pixels."""
    return content if isinstance(content, bytes) else content.pixels


def to_image(image: ImageInput, pixel_format: str | None = None) -> image_pb2.Image:
    """Return the image as the contract carries it; arguments and errors as of `read_image`."""
    message = image_pb2.Image()
    put_image(message, read_image(image, pixel_format))
    return message


def is_quickly_read(image: ImageInput) -> bool:
    """Return True if `read_image` is fast: no file to read, and little to copy."""
    if isinstance(image, (RawImage, VideoFrame)):
        image = image.pixels if isinstance(image, RawImage) else image.image
    if isinstance(image, PreprocessedImage):
        image = image.pixels
    if isinstance(image, (memoryview, np.ndarray)):
        return image.nbytes <= QUICK_BYTES
    return isinstance(image, (bytes, bytearray)) and len(image) <= QUICK_BYTES


def _with_colors(content: ImageContent, image: RawImage | VideoFrame) -> ImageContent:
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
        elif not isinstance(content, RawPixels) or content.pixel_format not in PLANAR_FORMATS:
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
        if inspect.isawaitable(content):
            if inspect.iscoroutine(content):
                content.close()  # never awaited, which Python would warn about
            inner = "its `.file`, or " if hasattr(image, "file") else ""
            raise TypeError(
                f"image: read() of {type(image).__name__} is asynchronous; pass {inner}the result"
                " of `await image.read()`, or use AsyncClient, which awaits it"
            )
        return _read_bytes(content)
    if isinstance(image, (list, tuple)):
        raise TypeError(
            f"image: is a {type(image).__name__} of {len(image)}, not one image; classify_many and"
            " embed_many take several"
        )
    raise TypeError(
        f"image: {type(image).__name__} is not a path, bytes, a binary file, a PIL image, a numpy"
        " array or a torch tensor"
    )


def _read_bytes(content: Any) -> bytes:
    """Check what `read` of a file returned.

    Raises:
        TypeError: It is not bytes.
        InvalidImageError: It is empty.
    """
    if not isinstance(content, bytes):
        raise TypeError(
            f"image: read() returned {type(content).__name__}, not bytes: open the file with 'rb'"
        )
    if not content:
        raise InvalidImageError(
            "image: read() returned no bytes; if the file was read before, go back to its start"
            " with `seek(0)`",
            field="image",
        )
    return content


async def awaited(image: Any) -> Any:
    """Return the content of a file that is read asynchronously, e.g. an UploadFile of FastAPI.

    Returns:
        Its bytes; other images as they are.

    Raises:
        TypeError: The file returns no bytes.
        InvalidImageError: The file is at its end.
    """
    read = getattr(image, "read", None)
    if read is None or not inspect.iscoroutinefunction(read):
        return image
    try:
        return _read_bytes(await read())
    except InvalidImageError as error:
        error._set_context(source=image)
        raise
