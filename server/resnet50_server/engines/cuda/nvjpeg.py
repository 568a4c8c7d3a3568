"""JPEGs decoded, resized and cropped on a CUDA device: nvJPEG, through torchvision.

Opt-in: its pixels are not those of libjpeg-turbo. nvJPEG's inverse transform and chroma upsampling
round differently; `benchmarks/gpu.py` measures by how much.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from resnet50_server.images.transform import Transform

from .gathering import Gathering

# What nvJPEG is given at once; torchvision makes one call at a time, from whichever thread.
MAX_TOGETHER = 64

# What turns stored [3, height, width] pixels upright, by EXIF orientation; 1 is upright already.
UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip(1, 2),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.transpose(1, 2),
    6: lambda pixels: pixels.transpose(1, 2).flip(2),
    7: lambda pixels: pixels.transpose(1, 2).flip(1, 2),
    8: lambda pixels: pixels.transpose(1, 2).flip(1),
}


class NvJpegDecoder:
    """Decodes JPEGs on a CUDA device, for threads that each have one.

    What several threads have at once is decoded by one call, which is what nvJPEG's hardware engine
    needs to be fast; each thread then resizes its own on a stream of its own.

    Args:
        device: Where to decode.

    Raises:
        RuntimeError: This torchvision cannot, or there is no such device; says what to do.
    """

    def __init__(self, device: torch.device) -> None:
        self._decode_jpeg = _decode_jpeg()
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(
                f"decode: cuda needs a CUDA device, and torch {torch.__version__} sees"
                f" {torch.cuda.device_count()}, not {device}; use --decode cpu"
            )
        self._device = device
        self._own = threading.local()
        self._gathering: Gathering[Tensor, Tensor] = Gathering(self._together, MAX_TOGETHER)

    def decode(
        self, encoded: bytes, transform: Transform, orientation: int = 1
    ) -> NDArray[np.uint8]:
        """Decode, resize and crop one JPEG; blocks. Safe from several threads at once.

        Args:
            encoded: A complete JPEG file, grey or in three colours.
            transform: The variant's.
            orientation: From its EXIF header.

        Returns:
            uint8 [crop, crop, 3], RGB.

        Raises:
            ValueError: nvJPEG does not take it; another decoder may.
        """
        # A copy, because torch warns of memory that it may not write.
        file = torch.from_numpy(np.frombuffer(encoded, dtype=np.uint8).copy())
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream()):
            try:
                pixels = self._gathering.call(file)
                upright = UPRIGHT.get(orientation)
                if upright is not None:
                    pixels = upright(pixels)
                # The copy to the CPU waits for this thread's stream, so that nothing is queued for
                # any of this memory when it is used again.
                return resize_and_crop(pixels, transform).cpu().numpy()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ValueError(f"nvJPEG does not decode it: {error}") from error

    def _together(self, files: Sequence[Tensor]) -> list[Tensor | Exception]:
        """Decode files at once, or one by one if one of them spoils it."""
        try:
            return list(self._decode(list(files)))
        except RuntimeError as error:
            if len(files) == 1:
                return [error]
        return [one for file in files for one in self._together([file])]

    def _decode(self, files: list[Tensor]) -> list[Tensor]:
        """Return uint8 [3, height, width] on the device for each file, ready for every stream."""
        # torchvision decodes into memory of the current stream without waiting for what is queued
        # there (pytorch/vision#9606): on this thread's own one nothing is, once it is idle.
        stream = self._stream()
        stream.synchronize()
        decoded: list[Tensor] = self._decode_jpeg(files, mode="RGB", device=self._device)
        stream.synchronize()
        return decoded

    def _stream(self) -> torch.cuda.Stream:
        """Return this thread's stream."""
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream: torch.cuda.Stream = self._own.stream
        return stream


def resize_and_crop(pixels: Tensor, transform: Transform) -> Tensor:
    """Apply a variant's geometry, as `decode.resize_and_crop`, on any device.

    Args:
        pixels: uint8 [3, height, width].
        transform: Which geometry.

    Returns:
        uint8 [crop, crop, 3], contiguous.
    """
    height, width = pixels.shape[1:]
    size = transform.resized(height, width)
    if size != (height, width):
        pixels = transforms.resize(
            pixels,
            list(size),
            interpolation=InterpolationMode(transform.interpolation),
            antialias=transform.interpolation != "nearest",
        )
    top, left = transform.crop_origin(*size)
    crop = transform.crop
    # Pads with black what is smaller than the crop.
    pixels = transforms.crop(pixels, top, left, crop, crop)
    return pixels.permute(1, 2, 0).contiguous()


def _decode_jpeg() -> Callable[..., Any]:
    """Return torchvision's decoder.

    Raises:
        RuntimeError: There is none any more.
    """
    try:
        from torchvision.io import decode_jpeg
    except ImportError as error:
        import torchvision

        raise RuntimeError(
            f"decode: cuda needs torchvision.io.decode_jpeg, which torchvision"
            f" {torchvision.__version__} no longer has (deprecated since 0.29); install"
            " torchvision 0.29, or use --decode cpu"
        ) from error
    found: Callable[..., Any] = decode_jpeg
    return found
