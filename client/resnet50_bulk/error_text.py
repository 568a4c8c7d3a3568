"""Text of an error, for messages and outputs."""

from __future__ import annotations


def error_text(error: Exception) -> str:
    """Return an error's text without the file name, which the caller prints before it."""
    return f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
