"""Base of all results: as JSON, as a table of a notebook, and in pickles."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Longer values are cut in tables.
MAX_CELL_CHARACTERS = 200


class Record:
    """Base of the dataclasses of results."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, in types that `json.dumps` accepts.

        Results become dicts, tuples and arrays lists, and errors dicts with their type and message.
        `source` is None unless it is a path, and so are numbers that JSON lacks (NaN, infinity).
        """
        return {name: json_value(value) for name, value in _values(self)}

    def _repr_html_(self) -> str:
        """Return a table of the fields, which notebooks show instead of `repr`."""
        rows = ((name, _text(value)) for name, value in _values(self) if name != "source")
        return table(type(self).__name__, rows)

    def __getstate__(self) -> dict[str, Any]:
        # An image may be large, and an open file cannot be pickled.
        return without_image(self.__dict__)


def as_array(values: NDArray[Any], dtype: Any, copy: bool | None) -> NDArray[Any]:
    """Return an array for `__array__`, whose arguments these are.

    Args:
        values: The array.
        dtype: Type of the result; None for that of `values`.
        copy: Whether to copy; None: if it is needed.
    """
    if copy is None:  # NumPy 1 does not have it
        return np.asarray(values, dtype=dtype)
    return np.array(values, dtype=dtype, copy=copy)


def without_image(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object's variables for a pickle: `source` remains only if it is a path."""
    kept = dict(state)
    if not isinstance(kept.get("source"), (str, os.PathLike)):
        kept.update({"source": None} if "source" in kept else {})
    return kept


def json_value(value: Any) -> Any:
    """Return a value as JSON has it; None for one that it does not have."""
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        finite = value.dtype.kind != "f" or bool(np.isfinite(value).all())
        return value.tolist() if finite else json_value(value.tolist())
    if isinstance(value, np.generic):
        return json_value(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Mapping):
        return {str(key): json_value(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [json_value(one) for one in value]
    if isinstance(value, BaseException):
        known = {name: getattr(value, name, None) for name in ("code", "request_id")}
        return {"type": type(value).__name__, "message": str(value), **known}
    return None


def table(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return an HTML table with two columns; all text is escaped."""
    import html  # loads all of HTML's entities

    lines = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in rows
    )
    return f"<table><caption>{html.escape(caption)}</caption>{lines}</table>"


def _values(record: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(record, field.name)) for field in fields(record)]


def _text(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else repr(value)
    cut = len(text) > MAX_CELL_CHARACTERS
    return text[:MAX_CELL_CHARACTERS] + "…" if cut else text
