"""A variant's preprocessing, as numbers: what `weights.transforms()` does, read from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from .background import Color

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Transform:
    """Resize, central crop, scale to 0..1, normalise.

    Attributes:
        resize: Length of the shorter side after resizing, in pixels.
        crop: Side of the central square, in pixels.
        mean: Subtracted from red, green and blue after scaling to 0..1.
        std: Divides red, green and blue after that.
        interpolation: How pixels are resampled; antialiased unless nearest.
        background: Red, green and blue that transparent pixels are composited on; None drops
            alpha, as torchvision's pipeline does.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bilinear"
    background: Color | None = None

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

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after resizing, the shorter side being `resize`.

        The longer side is truncated, as torchvision's `_compute_resized_output_size` does.
        """
        short, long = min(height, width), max(height, width)
        new_long = int(self.resize * long / short)
        return (new_long, self.resize) if height > width else (self.resize, new_long)

    def crop_origin(self, height: int, width: int) -> tuple[int, int]:
        """Return (top, left) of the central crop; Python's rounding, as torchvision's own.

        Both are negative where the image is smaller than the crop: it is then padded with black.
        """
        return round((height - self.crop) / 2.0), round((width - self.crop) / 2.0)

    def problems(self) -> list[str]:
        """Say what makes these numbers unusable, if anything does."""
        found = []
        if not 1 <= self.crop <= 4096:
            found.append(f"crop is {self.crop}, must be 1 to 4096 pixels")
        if not 1 <= self.resize <= 8192:
            found.append(f"resize is {self.resize}, must be 1 to 8192 pixels")
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            found.append(
                f"interpolation is {self.interpolation!r}, must be nearest, bilinear or bicubic"
            )
        if not all(math.isfinite(value) for value in self.mean):
            found.append("mean holds a number that is not finite")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            found.append("std holds a number that is not above 0")
        return found
