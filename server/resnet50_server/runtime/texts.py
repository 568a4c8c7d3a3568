"""Untrusted text for responses, logs and terminals: bounded, without control characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

# Maximum length of a status message as gRPC writes it into a header, percent-encoded. It is sent
# twice (again in the details), and clients accept 8 KiB of headers in all.
MAX_TEXT_BYTES = 2048
# Maximum number of problems, or names, that a message lists.
MAX_PROBLEMS, MAX_NAMES = 3, 20
# Joiners: words of Persian and Hindi need them, and they are harmless.
_JOINERS = "\u200c\u200d"
# Characters that gRPC does not encode.
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def is_plain(text: str) -> bool:
    """Return whether text has only printable characters, spaces and joiners.

    Not plain are line ends, escape sequences, C1 and bidirectional controls: they can forge lines,
    move a cursor, or change the order in which text is displayed.
    """
    return text.isprintable() or all(
        one.isprintable() or one in _JOINERS or unicodedata.category(one) == "Zs" for one in text
    )


def escaped(text: str) -> str:
    """Return text with every unprintable character as a Python escape sequence."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def shortened(text: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return text, truncated with a note of its length if it is too long for a header.

    Args:
        text: Of any length.
        max_bytes: Maximum length, percent-encoded as gRPC sends a status message; at least 64.
    """
    if _fitting(text, max_bytes) == len(text):
        return text
    end = f"... ({len(text)} characters in all)"
    return text[: _fitting(text, max_bytes - len(end))] + end


def _fitting(text: str, max_bytes: int) -> int:
    """Return how many characters of a text fit into `max_bytes`, percent-encoded."""
    if len(text) * 12 <= max_bytes:  # four bytes of UTF-8, three characters each
        return len(text)
    left = max_bytes
    for position, one in enumerate(text):
        left -= 1 if one in _PLAIN else 3 * len(one.encode(errors="replace"))
        if left < 0:
            return position
    return len(text)


def listed(parts: Sequence[str], limit: int = MAX_PROBLEMS, separator: str = "; ") -> str:
    """Return at most `limit` parts as text, and how many more there are."""
    more = len(parts) - limit
    return separator.join(parts[:limit]) + (f"{separator}and {more} more" if more > 0 else "")
