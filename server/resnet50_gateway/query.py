"""Query parameters as options of calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from starlette.datastructures import QueryParams

from resnet50.v1 import inference_pb2, result_pb2

from .problems import invalid

MAX_VALUE_LENGTH = 512
_TYPES = {
    "float32": result_pb2.EMBEDDING_TYPE_FLOAT32,
    "float16": result_pb2.EMBEDDING_TYPE_FLOAT16,
}
_DELIVERIES = {
    "ordered": inference_pb2.DELIVERY_ORDERED,
    "latest": inference_pb2.DELIVERY_LATEST,
}


def _text(_: str, value: str) -> str:
    return value


def _whole(name: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and int(value) < 2**32):
        raise invalid(name, f"is {value[:32]!r}, must be a whole number from 0 on")
    return int(value)


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise invalid(name, f"is {value[:32]!r}, must be a number")
    return number


def _bool(name: str, value: str) -> bool:
    if value not in ("true", "false", "1", "0"):
        raise invalid(name, f"is {value[:32]!r}, must be true or false")
    return value in ("true", "1")


def _choice(choices: dict[str, Any]) -> Callable[[str, str], Any]:
    def parse(name: str, value: str) -> Any:
        if value not in choices:
            raise invalid(name, f"is {value[:32]!r}, must be {' or '.join(choices)}")
        return choices[value]

    return parse


CLASSIFY: dict[str, Callable[[str, str], Any]] = {
    "variant": _text,
    "top_k": _whole,
    "min_probability": _number,
    "include_embedding": _bool,
    "background": _text,
}
EMBED: dict[str, Callable[[str, str], Any]] = {
    "variant": _text,
    "l2_normalize": _bool,
    "type": _choice(_TYPES),
    "background": _text,
}
STREAM: dict[str, Callable[[str, str], Any]] = {
    "delivery": _choice(_DELIVERIES),
    "max_in_flight": _whole,
}


def parse(
    query: QueryParams, parsers: dict[str, Callable[[str, str], Any]], others: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the parameters that a query has, parsed.

    Args:
        query: The query.
        parsers: A function of name and value for each parameter that is returned.
        others: Names of further parameters that it may have.

    Raises:
        Problem: One is unknown, given twice, or not valid.
    """
    known = (*parsers, *others)
    values: dict[str, Any] = {}
    for name, value in query.multi_items():
        if name not in known:
            raise invalid(name[:64], f"is no parameter here; there are {', '.join(known)}")
        if len(value) > MAX_VALUE_LENGTH:
            raise invalid(
                name,
                f"has {len(value)} characters, the limit is {MAX_VALUE_LENGTH}",
                limit=MAX_VALUE_LENGTH,
            )
        if name in values:
            raise invalid(name, "is given twice; give it once")
        if name in parsers:
            values[name] = parsers[name](name, value)
    return values
