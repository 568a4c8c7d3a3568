"""The `transform` of a `variant.json`: a transform as JSON, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import field_validator

from resnet50_server.images.background import parse_background, spell_background
from resnet50_server.images.transform import ChannelOrder, Interpolation, LongerSide, Transform

from .strict_model import StrictModel

RESIZES = (
    "the length of the shorter side (232), exactly [height, width] ([224, 224]),"
    ' {"longer_side": 224}, or null for none'
)
CROPS = "the side of the central square (224), [height, width], or null for none"


class TransformFile(StrictModel):
    """Preprocessing in a `variant.json`; see `Transform` for its attributes.

    Attributes:
        resize: A length, [height, width], {"longer_side": length} or null.
        crop: A length, [height, width] or null.
        background: As `parse_background` reads it.
        fill: One level for red, green and blue, or all three.
    """

    resize: Any
    crop: Any = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bilinear"
    background: str = "none"
    antialias: bool = True
    pad_to_square: bool = False
    fill: Any = (0, 0, 0)
    channel_order: ChannelOrder = "RGB"
    input_range: Any = (0, 1)

    @field_validator("resize")
    @classmethod
    def _resize(cls, value: Any) -> Any:
        if isinstance(value, dict) and list(value) == ["longer_side"]:
            if _is_whole(value["longer_side"]):
                return LongerSide(value["longer_side"])
        elif value is None or _is_whole(value):
            return value
        elif (pair := _whole_numbers(value, 2)) is not None:
            return pair
        raise ValueError(f"must be {RESIZES}")

    @field_validator("crop")
    @classmethod
    def _crop(cls, value: Any) -> Any:
        if value is None or _is_whole(value):
            return value
        if (pair := _whole_numbers(value, 2)) is not None:
            return pair
        raise ValueError(f"must be {CROPS}")

    @field_validator("background")
    @classmethod
    def _background(cls, value: str) -> str:
        parse_background(value)
        return value

    @field_validator("fill")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if _is_whole(value):
            return (value,) * 3
        if (levels := _whole_numbers(value, 3)) is not None:
            return levels
        raise ValueError("must be one level (0 is black), or [red, green, blue], 0 to 255 each")

    @field_validator("input_range")
    @classmethod
    def _input_range(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and [*value] in ([0, 1], [0, 255]):
            return tuple(map(int, value))
        raise ValueError("must be [0, 1] or [0, 255]")

    def to_transform(self) -> Transform:
        """Return the transform, whose numbers are still to be checked by `Transform.problems`."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return Transform(**values | {"background": parse_background(self.background).color})


def transform_json(transform: Transform) -> dict[str, Any]:
    """Return a transform as the object of a `variant.json`; defaults other than mean's left out."""
    shown: dict[str, Any] = {}
    for field in fields(Transform):
        value = getattr(transform, field.name)
        if field.name in ("mean", "std", "resize", "interpolation") or value != field.default:
            shown[field.name] = _to_json(value)
    if "background" in shown:
        shown["background"] = spell_background(transform.background)
    if shown.get("crop", 0) is None:
        del shown["crop"]
    if "fill" in shown and len(set(transform.fill)) == 1:
        shown["fill"] = transform.fill[0]
    return shown


def _to_json(value: Any) -> Any:
    if isinstance(value, LongerSide):
        return {"longer_side": value.pixels}
    return list(value) if isinstance(value, tuple) else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_numbers(value: Any, count: int) -> tuple[int, ...] | None:
    """Return a list of so many whole numbers as a tuple; None if it is none."""
    if isinstance(value, (list, tuple)) and len(value) == count and all(map(_is_whole, value)):
        return tuple(value)
    return None
