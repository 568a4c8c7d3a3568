"""One variant in full, as lines of text."""

from __future__ import annotations

from typing import Any

from resnet50_client.types import Variant


def lines(variant: Variant) -> list[str]:
    """Return a line for each field of a variant; fields of a message follow its name."""
    return [f"{key:20} {_text(value)}" for key, value in variant.to_dict().items()]


def _text(value: Any) -> str:
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(_text(one) for one in value)
    if isinstance(value, dict):
        return "; ".join(f"{key} {_text(one)}" for key, one in value.items())
    return str(value)
