"""A variant's preprocessing, as numbers: from an upright image to the network's input."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

from .background import Color, spell_background

Interpolation = Literal[
    "nearest", "nearest-exact", "bilinear", "bicubic", "lanczos", "hamming", "box"
]
ChannelOrder = Literal["RGB", "BGR"]
# Methods that exist without antialiasing too; that of the others is a part of them.
ANTIALIAS_OPTIONAL = ("bilinear", "bicubic")
MAX_CROP, MAX_RESIZE = 4096, 8192
# Of images whose crop is remembered.
KNOWN_SIZES = 256
# Counted up with each release that makes other pixels by the same numbers.
_PIXELS_VERSION = 1


@dataclass(frozen=True)
class LongerSide:
    """A resize of the longer side; the shorter one follows.

    Attributes:
        pixels: The length of the longer side.
    """

    pixels: int


@dataclass(frozen=True)
class Transform:
    """Pad to a square, resize, central crop, scale, normalize.

    Attributes:
        resize: Length of the shorter side after resizing, in pixels; or exactly (height, width),
            whatever the aspect ratio; or the length of the longer side; None for no resize.
        crop: Side of the central square, in pixels; or (height, width); None for no crop, if the
            size after the resize is the same for all images. A smaller image is padded.
        mean: Subtracted from each channel after scaling, in `channel_order`.
        std: Divides each channel after that, in `channel_order`.
        interpolation: How pixels are resampled. "nearest" takes the pixel that torch takes of a
            tensor; "nearest-exact" the one that Pillow takes, and the rest is Pillow's.
        background: Red, green and blue that transparent pixels are composited on before all of
            this; None drops alpha, as torchvision's pipeline does.
        antialias: Whether bilinear and bicubic average all pixels that a smaller one covers.
        pad_to_square: Whether the image is padded to a square before it is resized; it stays in
            the centre.
        fill: Red, green and blue of what is padded, 0 to 255.
        channel_order: Order of the channels in the network's input.
        input_range: The values of black and white after scaling: (0, 1) or (0, 255).
    """

    resize: int | tuple[int, int] | LongerSide | None
    crop: int | tuple[int, int] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bilinear"
    background: Color | None = None
    antialias: bool = True
    pad_to_square: bool = False
    fill: tuple[int, int, int] = (0, 0, 0)
    channel_order: ChannelOrder = "RGB"
    input_range: tuple[int, int] = (0, 1)

    @classmethod
    def of(cls, preset: Any) -> Transform:
        """Read torchvision's `ImageClassification` preset.

        Args:
            preset: What `weights.transforms()` returns.
        """
        (resize,) = preset.resize_size
        (crop,) = preset.crop_size
        return cls(
            resize=resize,
            crop=crop,
            mean=cast("tuple[float, float, float]", tuple(preset.mean)),
            std=cast("tuple[float, float, float]", tuple(preset.std)),
            interpolation=preset.interpolation.value,
        )

    @cached_property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        size = self._known_size()
        assert size is not None  # see `problems`
        return size

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that determines the network's input as uint8 pixels, 64 hex digits.

        Channel order and normalization are left out: the engine applies them.
        """
        numbers = (
            *(_PIXELS_VERSION, self.resize, self.input_size, self.interpolation, self.antialias),
            *(self.pad_to_square, self.fill, self.background),
        )
        return hashlib.sha256(repr(numbers).encode()).hexdigest()

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after padding to a square, if at all, and resizing.

        The side that follows from the other one is truncated, as torchvision's
        `_compute_resized_output_size` does.
        """
        if self.pad_to_square:
            height = width = max(height, width)
        short, long = min(height, width), max(height, width)
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        if isinstance(self.resize, LongerSide):
            long, short = self.resize.pixels, max(1, int(self.resize.pixels * short / long))
        else:
            long, short = int(self.resize * long / short), self.resize
        return (long, short) if height > width else (short, long)

    def half_resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) when the longer side has been resized, and the other one padded.

        Images that are padded to a square pass through it; see `resize_and_crop`.
        """
        new_height, new_width = self.resized(height, width)
        return (new_height, height) if height > width else (width, new_width)

    def needs_padding(self, height: int, width: int) -> bool:
        """Return whether an image is padded before it is resized."""
        return self.pad_to_square and height != width

    def crop_origin(self, height: int, width: int) -> tuple[int, int]:
        """Return (top, left) of the central crop; Python's rounding, as torchvision's own.

        None is above 0 where the image is smaller than the crop: it is padded there, with the
        larger half behind it.
        """
        crop_height, crop_width = self.input_size
        return _centred(height, crop_height), _centred(width, crop_width)

    def only_crop(self, height: int, width: int) -> tuple[slice, slice] | None:
        """Return the rows and columns that the crop keeps of an image that is not resized.

        Fewer than the crop has if the image is smaller; None if images of this size are resized, or
        padded to a square.
        """
        size, known = (height, width), self._only_crops
        try:
            return known[size]
        except KeyError:
            crop = self._only_crop(size)
        if len(known) >= KNOWN_SIZES:
            known.clear()  # another thread may clear it, too, between any two lines
        known[size] = crop
        return crop

    @cached_property
    def _only_crops(self) -> dict[tuple[int, int], tuple[slice, slice] | None]:
        """Results of `only_crop` by the size: cameras send one size again and again."""
        return {}

    def _only_crop(self, size: tuple[int, int]) -> tuple[slice, slice] | None:
        if self.resized(*size) != size or self.needs_padding(*size):
            return None
        rows, columns = self.input_size
        top, left = self.crop_origin(*size)
        return slice(max(0, top), top + rows), slice(max(0, left), left + columns)

    def affine(self) -> tuple[list[float], list[float]]:
        """Return scale and shift of red, green and blue: pixel * scale + shift is normalized."""
        white = 255.0 / self.input_range[1]
        scale = [1.0 / (white * std) for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        return (scale[::-1], shift[::-1]) if self.channel_order == "BGR" else (scale, shift)

    def problems(self) -> list[str]:
        """Say what makes these numbers unusable, if anything does."""
        found = [
            *_side_problems("crop", self.crop, MAX_CROP),
            *_side_problems("resize", self.resize, MAX_RESIZE),
        ]
        if not found:
            found += self._size_problems()
        if self.interpolation not in get_args(Interpolation):
            known = get_args(Interpolation)
            found.append(
                f"interpolation is {self.interpolation!r}, must be"
                f" {', '.join(known[:-1])} or {known[-1]}"
            )
        elif not self.antialias and self.interpolation not in ANTIALIAS_OPTIONAL:
            found.append(
                f"antialias is false, which {self.interpolation} does not have; leave it out, or"
                f" use {' or '.join(ANTIALIAS_OPTIONAL)}"
            )
        if not all(0 <= value <= 255 for value in self.fill):
            found.append(f"fill is {list(self.fill)}, must be 0 to 255 for red, green and blue")
        if self.input_range not in ((0, 1), (0, 255)):
            found.append(f"input_range is {list(self.input_range)}, must be [0, 1] or [0, 255]")
        if not all(math.isfinite(value) for value in self.mean):
            found.append("mean holds a number that is not finite")
        elif self.input_range == (0, 1) and max(self.mean) > 1:
            found.append(
                f"mean holds {max(self.mean):g}, but pixels are scaled to 0 to 1; if they were not"
                ' in training, add "input_range": [0, 255]'
            )
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            found.append("std holds a number that is not above 0")
        return found

    def _known_size(self) -> tuple[int, int] | None:
        """Return (height, width) of the network's input; None if it depends on the image."""
        size = self.crop
        if size is None and (isinstance(self.resize, tuple) or self.pad_to_square):
            size = self.resize.pixels if isinstance(self.resize, LongerSide) else self.resize
        return (size, size) if isinstance(size, int) else size

    def _size_problems(self) -> list[str]:
        size = self._known_size()
        if size is None:
            side = self.resize.pixels if isinstance(self.resize, LongerSide) else 224
            return [
                "crop is missing: images of different shapes would have different sizes, and the"
                f" network takes one; give the side of the central crop, such as {side}, or resize"
                " to exactly [height, width]"
            ]
        if max(size) > MAX_CROP:
            return [f"resize is {max(size)} without a crop, must be 1 to {MAX_CROP} pixels"]
        return []

    def __str__(self) -> str:
        """Describe it in one line, step by step."""
        colour = (
            "black" if not any(self.fill) else f"{self.fill[0]}, {self.fill[1]}, {self.fill[2]}"
        )
        method = self.interpolation + ("" if self.antialias else ", not antialiased")
        steps = [f"pad to a square ({colour})"] if self.pad_to_square else []
        if isinstance(self.resize, LongerSide):
            steps.append(f"resize the longer side to {self.resize.pixels} ({method})")
        elif self.resize is not None:
            steps.append(f"resize {_sides(self.resize)} ({method})")
        if self.crop is not None:
            padded = any(self.fill) and not self.pad_to_square
            steps.append(f"crop {_sides(self.crop)}{f' padded with {colour}' if padded else ''}")
        if self.channel_order != "RGB":
            steps.append(self.channel_order)
        if self.input_range != (0, 1):
            steps.append(f"{self.input_range[0]} to {self.input_range[1]}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            steps.append(f"{name} {', '.join(f'{value:g}' for value in values)}")
        if self.background is not None:
            steps.append(f"background {spell_background(self.background)}")
        return ", ".join(steps)


def _centred(length: int, crop: int) -> int:
    """Return where a crop begins in a side; negative: how much is padded before it."""
    return round((length - crop) / 2.0) if length >= crop else -((crop - length) // 2)


def _side_problems(
    name: str, sides: int | tuple[int, int] | LongerSide | None, most: int
) -> list[str]:
    if sides is None:
        return []
    if isinstance(sides, LongerSide):
        sides = sides.pixels
    wrong = [
        side for side in (sides if isinstance(sides, tuple) else (sides,)) if not 1 <= side <= most
    ]
    return [f"{name} is {side}, must be 1 to {most} pixels" for side in wrong[:1]]


def _sides(sides: int | tuple[int, int]) -> str:
    """Return a size as text: one number for a side, height x width for both."""
    return f"{sides[0]} x {sides[1]}" if isinstance(sides, tuple) else str(sides)
