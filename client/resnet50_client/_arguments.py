"""Checks of arguments: each error names the argument, its value, and the allowed values.

They run before a call starts, so that both clients raise the same errors, and streaming methods
raise when called rather than at their first result.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from ._arrays import PIXEL_FORMATS, PLANAR_FORMATS, is_tensor
from ._pil import is_pil_image
from ._preprocessed import PreprocessedImage
from .errors import InvalidRequestError
from .images import RawImage, VideoFrame

_COLOR = re.compile("#[0-9A-Fa-f]{6}")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# Counts are uint32 in the contract.
MAX_COUNT = 2**32 - 1


def check_choice(name: str, value: object, allowed: Iterable[str], field: str = "") -> None:
    """Check that a value is one of `allowed`.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        allowed: Allowed values.
        field: `InvalidRequestError.field`; "" for the argument's name.

    Raises:
        InvalidRequestError: The value is not one of them.
    """
    known = tuple(allowed)
    if not (isinstance(value, str) and value in known):
        raise InvalidRequestError(
            f"{name}: is {value!r}, must be one of {', '.join(known)}", field=field or name
        )


def check_flag(name: str, value: object) -> None:
    """Check that a value is True or False.

    Raises:
        InvalidRequestError: The value is not.
    """
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name}: is {value!r}, must be True or False", field=name)


def check_count(name: str, value: object, least: int, rule: str, field: str = "") -> None:
    """Check that a value is an integer of at least `least`; `rule` describes that in the error.

    Raises:
        InvalidRequestError: The value is not.
    """
    # numpy integers are integers; True and False are not.
    good = isinstance(value, Integral) and not isinstance(value, bool)
    if good and int(value) > MAX_COUNT:  # type: ignore[call-overload]
        rule = f"at most {MAX_COUNT}"
    if not good or not least <= int(value) <= MAX_COUNT:  # type: ignore[call-overload]
        raise InvalidRequestError(f"{name}: is {value!r}, must be {rule}", field=field or name)


def check_name(name: str, value: object, field: str = "") -> None:
    """Check the name of a variant; None, for a default, is allowed.

    Raises:
        InvalidRequestError: The value is no text, or empty.
    """
    if value is not None and not (isinstance(value, str) and value):
        raise InvalidRequestError(
            f"{name}: is {value!r}, must be the name of a variant, or None for the default",
            field=field or name,
        )


def check_request_id(value: object) -> None:
    """Check a request ID; None, for a generated one, is allowed.

    Raises:
        InvalidRequestError: The server would not accept the value.
    """
    if value is not None and not (isinstance(value, str) and REQUEST_ID.fullmatch(value)):
        raise InvalidRequestError(
            f"request_id: is {value!r}, must be 1 to 128 of A-Z a-z 0-9 . _ : / + = -",
            field="request_id",
        )


def check_probability(name: str, value: object, field: str = "") -> None:
    """Check that a value is a number from 0 to 1.

    Raises:
        InvalidRequestError: The value is not.
    """
    if not (_is_number(value) and 0.0 <= value <= 1.0):  # type: ignore[operator]
        raise InvalidRequestError(
            f"{name}: is {value!r}, must be a number from 0 to 1, or None", field=field or name
        )


def check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    """Check that a value is a time in seconds: a number above 0, `math.inf` for no limit.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        zero: Allow 0, too.

    Raises:
        InvalidRequestError: The value is not.
    """
    if not (_is_number(value) and (value > 0 or (zero and value == 0))):  # type: ignore[operator]
        least = "0 or more" if zero else "above 0"
        raise InvalidRequestError(
            f"{name}: is {value!r}, must be a number of seconds {least} (math.inf for no limit)",
            field=name,
        )


def check_background(value: object) -> None:
    """Check a background of transparent pixels; None is allowed.

    Raises:
        InvalidRequestError: The value is none.
    """
    named = value is None or value in ("white", "black", "none")
    if not named and not (isinstance(value, str) and _COLOR.fullmatch(value)):
        raise InvalidRequestError(
            f'background: is {value!r}, must be "white", "black", "#rrggbb", "none" to drop alpha,'
            " or None for the variant's",
            field="options.background",
        )


def check_pixel_format(value: object) -> None:
    """Check the name of a pixel format; None is allowed.

    Raises:
        InvalidRequestError: The name is unknown.
    """
    if value is not None:
        check_choice("pixel_format", value, PIXEL_FORMATS)


def check_images(
    name: str, images: Any, pixel_format: str | None, *, asynchronous: bool = False
) -> None:
    """Check that a value is an iterable of images, not one image, which may be iterable itself.

    Args:
        name: Name of the argument.
        images: Value of the argument.
        pixel_format: Layout of arrays, which determines the number of axes of one image.
        asynchronous: Allow asynchronous iterables, too.

    Raises:
        TypeError: The value is one image, or is not iterable.
    """
    check_pixel_format(pixel_format)
    one = _one_image(images, pixel_format)
    if one:
        raise TypeError(
            f"{name}: is one image ({one}), must be an iterable of images: pass [image], or for"
            " one image call classify or embed"
        )
    if hasattr(images, "__iter__") or hasattr(images, "__getitem__"):
        return
    if hasattr(images, "__aiter__"):
        if asynchronous:
            return
        raise TypeError(
            f"{name}: {type(images).__name__} is an asynchronous iterable, which needs AsyncClient"
        )
    raise TypeError(f"{name}: is {type(images).__name__}, must be an iterable of images")


def _one_image(images: Any, pixel_format: str | None) -> str:
    """Describe the value if it is a single image; "" if it is not."""
    kind = type(images).__name__
    if isinstance(images, (str, os.PathLike)):
        return f"a path, {kind}"
    if isinstance(images, (bytes, bytearray, memoryview)):
        return f"a file's content, {kind}"
    if isinstance(images, (RawImage, VideoFrame, PreprocessedImage)) or is_pil_image(images):
        return kind
    if isinstance(images, io.IOBase) or (hasattr(images, "read") and hasattr(images, "readline")):
        return (
            f"an open file, {kind}; its lines are not images, and raw video from a pipe needs"
            " frames_from_raw"
        )
    axes = 2 if pixel_format in PLANAR_FORMATS else 3
    # Arrays of objects or of text contain images or paths.
    holds_pixels = getattr(getattr(images, "dtype", None), "kind", "") in tuple("biuf")
    if (is_tensor(images) or holds_pixels) and images.ndim <= axes:
        return f"{kind} of shape {list(images.shape)}; a batch has {axes + 1} axes"
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
