"""Removal of credentials from URLs in messages, logs and reprs."""

from __future__ import annotations

import re

_HIDDEN = "***"
# `user:password@`, up to the last @ before the path; and, for an unescaped slash in a password,
# what follows a colon and is not a port. FFmpeg accepts such URLs, and shows them in its errors.
_USER = re.compile(
    r"(?<=://)(?:[^\s/?#'\"]*@|[^\s/?#:'\"\[]+:(?!\d*(?:[/?#\s'\"]|$))[^\s'\"]*@)",
)
_USER_OF_WHOLE = re.compile(
    r"(?<=://)(?:[^/?#]*@|[^/?#:\[]+:(?!\d*(?:[/?#]|$)).*@)", flags=re.DOTALL
)
# Parameters of a query, or of a path as with some cameras, with the usual names of secrets.
_PARAMETER = re.compile(
    r"(?P<name>(?:[\w-]*(?:password|passwd|passphrase|pwd|token|secret|signature|credential"
    r"|api_?key|access_?key|auth)[\w-]*|(?<=[?&;])(?:pass|key|sig))=)[^&;#\s'\"]+",
    flags=re.IGNORECASE,
)


def redact(text: str, *urls: str) -> str:
    """Return a text without the credentials of the URLs in it.

    Args:
        text: The text.
        urls: URLs that may occur in it; they are found even if a password contains spaces or
            quotes, which end other URLs.
    """
    for url in urls:
        if (shown := _PARAMETER.sub(_hide, _USER_OF_WHOLE.sub(f"{_HIDDEN}@", url))) != url:
            text = text.replace(url, shown).replace(repr(url)[1:-1], shown)
    return _PARAMETER.sub(_hide, _USER.sub(f"{_HIDDEN}@", text))


def _hide(parameter: re.Match[str]) -> str:
    return f"{parameter['name']}{_HIDDEN}"
