"""Arrays, tensors and PIL images as raw pixels, without importing PIL or torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ._pil import is_pil_image, pil_array
from .errors import InvalidImageError

if TYPE_CHECKING:
    import torch

# Number of channels of each format; and the default format by number of channels.
CHANNELS = {"RGB": 3, "BGR": 3, "RGBA": 4, "GRAY": 1}
_FORMAT_OF_CHANNELS = {3: "RGB", 4: "RGBA", 1: "GRAY"}
PLANAR_FORMATS = ("NV12", "I420")
PIXEL_FORMATS = (*CHANNELS, *PLANAR_FORMATS)


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


def is_tensor(image: Any) -> TypeGuard[torch.Tensor]:
    """Return True for a torch tensor, without importing torch."""
    torch_module = sys.modules.get("torch")
    return torch_module is not None and isinstance(image, torch_module.Tensor)


def array_of(image: Any) -> NDArray[Any] | None:
    """Convert pixels, or an encoded file in an array, to a numpy array; None for other types."""
    if isinstance(image, np.ndarray):
        return image
    if is_pil_image(image):
        return pil_array(image)
    if is_tensor(image):
        return _tensor_array(image)
    return None


def is_file(array: NDArray[Any] | None) -> TypeGuard[NDArray[np.uint8]]:
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
        " [1, height, width]; send one image at a time, or a batch with embed_many or"
        " classify_many",
        field="image",
    )


def raw_pixels(array: NDArray[Any], pixel_format: str | None) -> RawPixels:
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
    if CHANNELS.get(name) != channels:
        known = ", ".join([*CHANNELS, *PLANAR_FORMATS])
        raise refuse(
            f"does not match pixel_format {name!r}"
            + (f" with its {CHANNELS[name]} channels" if name in CHANNELS else f" ({known})")
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
