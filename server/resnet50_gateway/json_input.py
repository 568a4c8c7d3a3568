"""JSON bodies, and images within them: base64, bare or as a data URI. URLs are never fetched."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .problems import invalid

# Each list or object of JSON takes much more memory than its two characters.
MAX_BRACKETS = 400_000
# Parsing takes up to 16 times the memory of a body, so that few are parsed at once.
_PARSERS = ThreadPoolExecutor(2, thread_name_prefix="json")
_DATA_URI = re.compile(r"data:[\w.+-]*/?[\w.+-]*(;[\w.+=-]+)*;base64,", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Value = TypeVar("Value")


async def in_parser_thread(parse: Callable[..., Value], *arguments: object) -> Value:
    """Return the result of a function that parses a body, called in one of two threads."""
    return await asyncio.get_running_loop().run_in_executor(_PARSERS, parse, *arguments)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return a body that is one JSON object.

    Raises:
        Problem: It is none, or has too many lists and objects.
    """
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > MAX_BRACKETS:
        raise invalid(
            "body",
            f"has {brackets} lists and objects, the limit is {MAX_BRACKETS}; send tensors as flat"
            " lists, or in binary form",
            limit=MAX_BRACKETS,
        )
    try:
        content = json.loads(body)
        if b"\\u" in body:
            # Texts with half a surrogate pair cannot be sent on.
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise invalid("body", f"is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise invalid("body", "must be a JSON object")
    return content


def decode_image(text: Any, field: str) -> bytes:
    """Return the image file that a text holds.

    Args:
        text: Base64, or a data URI.
        field: The member of the JSON, for errors.

    Raises:
        Problem: It is something else.
    """
    if not isinstance(text, str) or not text:
        raise invalid(field, "must be a text with an image file as base64 or as a data URI")
    if _URL.match(text):
        raise invalid(field, "is a URL, which is never fetched; send the image as a data URI")
    if text.startswith("data:"):
        found = _DATA_URI.match(text)
        if found is None:
            raise invalid(field, "is a data URI that is not ';base64,'; send the image as base64")
        text = text[found.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(field, f"is neither base64 nor a data URI: {error}") from None
