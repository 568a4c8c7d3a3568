"""Tensors of a request: checked, and as images."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet50_server.errors import InvalidImage, InvalidRequest
from resnet50_server.images.limits import ImageLimits, check_length
from resnet50_server.images.raw import check_raw
from resnet50_server.images.source import PixelFormat, PreprocessedImage, RawImage, Source
from resnet50_server.images.transform import Transform

FIELD = "inputs[0]"
RAW_FIELD = "raw_input_contents[0]"
DATATYPES = ("BYTES", "UINT8", "FP32")
# Distance of a normalised value from the nearest of the 256 levels, in levels. Rounding to float32
# moves it by less than 0.001.
MAX_OFF_GRID = 1e-2
_LENGTH = struct.Struct("<I")
_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype("<f4")
_NO_SHARED_MEMORY = "is not supported; send the tensor in raw_input_contents"


@dataclass(frozen=True)
class InputTensor:
    """The one input of a request.

    Attributes:
        datatype: "BYTES", "UINT8" or "FP32".
        shape: With the number of images first.
        raw: Its bytes in `raw_input_contents`; None if it has typed contents.
        contents: Its typed contents.
    """

    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None
    contents: Any

    @property
    def count(self) -> int:
        """The number of images."""
        return self.shape[0]


def parse_input(request: Any, max_images: int) -> InputTensor:
    """Return the input tensor of a request, with its shape checked.

    Args:
        request: A ModelInferRequest.
        max_images: The most that it may have.

    Raises:
        InvalidRequest: Names the field, what it is and what it must be.
    """
    if len(request.inputs) != 1:
        raise InvalidRequest(
            "inputs",
            f"has {len(request.inputs)} tensors, must have one: image files as BYTES [N], pixels"
            " as UINT8 [N, H, W, 3], or the network's input as FP32 [N, 3, H, W]",
        )
    tensor = request.inputs[0]
    if "shared_memory_region" in tensor.parameters:
        raise InvalidRequest(f"{FIELD}.parameters.shared_memory_region", _NO_SHARED_MEMORY)
    if tensor.datatype not in DATATYPES:
        raise InvalidRequest(
            f"{FIELD}.datatype", f"is {tensor.datatype!r}, must be one of {', '.join(DATATYPES)}"
        )
    shape = tuple(tensor.shape)
    _check_shape(tensor.datatype, shape, max_images)
    return InputTensor(tensor.datatype, shape, _raw_contents(request), tensor.contents)


def encoded_images(tensor: InputTensor, limits: ImageLimits) -> list[Source]:
    """Return the image files of a BYTES tensor.

    Raises:
        InvalidRequest: Its bytes do not add up to its shape, or a file is empty or too large.
    """
    files: list[bytes] = (
        list(tensor.contents.bytes_contents)
        if tensor.raw is None
        else _split(tensor.raw, tensor.count)
    )
    if len(files) != tensor.count:
        raise InvalidRequest(
            f"{FIELD}.contents.bytes_contents",
            f"has {len(files)} elements, the shape {list(tensor.shape)} needs {tensor.count}",
        )
    for index, encoded in enumerate(files):
        try:
            check_length(len(encoded), limits)
        except InvalidImage as error:
            raise at_element(error, index) from None
    return [*files]


def raw_images(tensor: InputTensor, limits: ImageLimits) -> list[Source]:
    """Return the images of a UINT8 tensor; typed contents take about 20 ns a byte.

    Raises:
        InvalidRequest: Its bytes do not add up to its shape, or the images have too many pixels.
    """
    count, height, width, channels = tensor.shape
    pixels = _contents(tensor, height * width * channels)
    size = height * width * channels
    images: list[Source] = []
    for index in range(count):
        part = bytes(pixels[index * size : (index + 1) * size])
        image = RawImage(width, height, PixelFormat.RGB, 0, part)
        try:
            check_raw(image, limits.max_pixels)
        except InvalidImage as error:
            raise at_element(error, index) from None
        images.append(image)
    return images


def normalized_images(tensor: InputTensor, transform: Transform) -> list[Source]:
    """Return the images of an FP32 tensor, with their normalisation undone; about 1 ms an image.

    A pixel is (value - shift) / scale of `Transform.affine`: exact for what torchvision's
    transforms make of a uint8 image.

    Args:
        tensor: FP32 [N, 3, height, width] of the variant's input size, in its channel order.
        transform: The variant's.

    Raises:
        InvalidRequest: Its bytes do not add up to its shape, or it has another size than the
            variant's input.
        InvalidImage: A value is not that of a pixel from 0 to 255.
    """
    count, channels, height, width = tensor.shape
    if (height, width) != transform.input_size:
        raise InvalidRequest(
            f"{FIELD}.shape",
            f"is {list(tensor.shape)}, the variant's input is [N, 3,"
            f" {transform.input_size[0]}, {transform.input_size[1]}]; send other sizes as UINT8"
            " [N, H, W, 3] or as files",
        )
    size = channels * height * width
    values = _contents(tensor, size, _FLOAT32)
    scale, shift = (np.array(one, np.float32).reshape(3, 1, 1) for one in transform.affine())
    images: list[Source] = []
    for index in range(count):
        image = values[index * size : (index + 1) * size].reshape(channels, height, width)
        rgb = image[::-1] if transform.channel_order == "BGR" else image
        levels = (rgb - shift) / scale
        rounded = np.rint(levels)
        # Written so that NaN fails both.
        on_grid = (np.abs(levels - rounded) <= MAX_OFF_GRID) & (rounded >= 0) & (rounded <= 255)
        if not on_grid.all():
            channel, row, column = np.argwhere(~on_grid)[0].tolist()
            raise InvalidImage(
                f"{FIELD}[{index}]",
                f"is pixel value {levels[channel, row, column]:.3f} of 0 to 255 at row {row},"
                f" column {column}, which is no whole number: the tensor was not made by the"
                " variant's transform of 8-bit pixels; send image files as BYTES, or pixels as"
                " UINT8 [N, H, W, 3]",
                kind="bad_raw",
            )
        pixels = np.ascontiguousarray(rounded.astype(np.uint8).transpose(1, 2, 0))
        images.append(PreprocessedImage(pixels.tobytes(), transform.digest))
    return images


def at_element(error: InvalidImage, index: int) -> InvalidImage:
    """Return an error of an image as that of an element of the tensor."""
    return InvalidImage(f"{FIELD}[{index}]", error.reason, kind=error.kind)


def _check_shape(datatype: str, shape: Sequence[int], max_images: int) -> None:
    fits, wanted = {
        "BYTES": (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1), "[N] or [N, 1]"),
        "UINT8": (len(shape) == 4 and shape[3] == 3 and min(shape) > 0, "[N, H, W, 3]"),
        "FP32": (len(shape) == 4 and shape[1] == 3 and min(shape) > 0, "[N, 3, H, W]"),
    }[datatype]
    if not fits:
        raise InvalidRequest(f"{FIELD}.shape", f"is {list(shape)}, must be {wanted} for {datatype}")
    if not 1 <= shape[0] <= max_images:
        raise InvalidRequest(
            f"{FIELD}.shape",
            f"has {shape[0]} images, a call may have 1 to {max_images} (max_images_per_call);"
            " split them into several calls",
        )


def _raw_contents(request: Any) -> bytes | None:
    """Return the raw contents of the one input; None if it has typed contents."""
    typed, raw = request.inputs[0].contents.ByteSize() > 0, len(request.raw_input_contents)
    if typed and raw:
        raise InvalidRequest(
            "raw_input_contents", f"is set as well as {FIELD}.contents; send one of the two"
        )
    if not typed and raw != 1:
        raise InvalidRequest(
            "raw_input_contents", f"has {raw} elements, must have one for each of the 1 inputs"
        )
    return None if typed else request.raw_input_contents[0]


def _split(raw: bytes, count: int) -> list[bytes]:
    """Return the elements of a raw BYTES tensor: each a length in 4 bytes, then its bytes."""
    elements, position = [], 0
    for index in range(count):
        if len(raw) - position < _LENGTH.size:
            raise InvalidRequest(
                RAW_FIELD, f"ends before element {index}, the shape needs {count} elements"
            )
        (length,) = _LENGTH.unpack_from(raw, position)
        position += _LENGTH.size
        if len(raw) - position < length:
            raise InvalidRequest(
                RAW_FIELD,
                f"has {len(raw) - position} bytes left for element {index}, whose length is"
                f" {length}; each element is its length as 4 bytes, little-endian, then its bytes",
            )
        elements.append(raw[position : position + length])
        position += length
    if position != len(raw):
        raise InvalidRequest(
            RAW_FIELD,
            f"has {len(raw) - position} bytes behind its last element; the shape needs {count}"
            " elements",
        )
    return elements


def _contents(tensor: InputTensor, size: int, dtype: np.dtype[Any] = _UINT8) -> NDArray[Any]:
    """Return the numbers of a tensor, flat.

    Args:
        tensor: The tensor.
        size: How many numbers an image has.
        dtype: Of a number.
    """
    field = RAW_FIELD
    if tensor.raw is not None:
        content = tensor.raw
    elif dtype.itemsize == 1:
        field, content = f"{FIELD}.contents.uint_contents", b"".join(tensor.contents.uint_contents)
        content = _packed_bytes(content, field)
    else:
        field, content = f"{FIELD}.contents.fp32_contents", b"".join(tensor.contents.fp32_contents)
    needed = tensor.count * size * dtype.itemsize
    if len(content) != needed:
        raise InvalidRequest(
            field,
            f"has {len(content)} bytes of data, the shape {list(tensor.shape)} of"
            f" {tensor.datatype} needs {needed}",
        )
    return np.frombuffer(content, dtype)


def _packed_bytes(packed: bytes, field: str) -> bytes:
    """Return packed numbers of variable length as bytes; those above 127 take two bytes.

    Args:
        packed: A packed field of the wire format.
        field: Its path, for errors.
    """
    content = np.frombuffer(packed, np.uint8)
    first = np.flatnonzero(content >= 0x80)
    second = first + 1
    if second.size and (second[-1] >= content.size or (content[second] != 1).any()):
        raise InvalidRequest(field, "has a number above 255; UINT8 holds 0 to 255")
    # 128 and more: the lower seven bits, then a 1. The continuation bit is the eighth.
    return np.delete(content, second).tobytes()
