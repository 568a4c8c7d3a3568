"""Text that others wrote, for replies, logs and people: of bounded length, and steering nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

# Of a message as gRPC writes it into a header, percent-encoded. It is sent twice (the details hold
# it as well), and clients take 8 KiB of headers in all.
MAX_TEXT_BYTES = 2048
# How many problems, or names, a message lists before it says how many more there are.
MOST_PROBLEMS, MOST_NAMES = 3, 20
# Joiners: words of Persian and Hindi need them, and they move nothing.
_JOINERS = "\u200c\u200d"
# What gRPC does not encode.
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def is_plain(text: str) -> bool:
    """Return whether text holds nothing but characters that are shown, spaces and joiners.

    Line ends, escape sequences, C1 and bidirectional controls are none of these: they would forge
    lines, move a cursor, or show text in another order than it has.
    """
    return text.isprintable() or all(
        one.isprintable() or one in _JOINERS or unicodedata.category(one) == "Zs" for one in text
    )


def escaped(text: str) -> str:
    """Return text with every character that does not print written as Python would."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def shortened(text: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return text, cut where it is too long for a header; it says so then.

    Args:
        text: Of any length.
        max_bytes: What it may take percent-encoded, as gRPC sends a status message; at least 64.
    """
    if _fitting(text, max_bytes) == len(text):
        return text
    end = f"... ({len(text)} characters in all)"
    return text[: _fitting(text, max_bytes - len(end))] + end


def _fitting(text: str, max_bytes: int) -> int:
    """Return how many of a text's characters fit into so many bytes."""
    if len(text) * 12 <= max_bytes:  # four bytes of UTF-8, three characters each
        return len(text)
    left = max_bytes
    for position, one in enumerate(text):
        left -= 1 if one in _PLAIN else 3 * len(one.encode(errors="replace"))
        if left < 0:
            return position
    return len(text)


def listed(parts: Sequence[str], most: int = MOST_PROBLEMS, separator: str = "; ") -> str:
    """Return the first few of a list, and how many more there are."""
    more = len(parts) - most
    return separator.join(parts[:most]) + (f"{separator}and {more} more" if more > 0 else "")
