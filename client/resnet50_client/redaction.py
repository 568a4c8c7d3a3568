"""Credentials taken out of text that is shown: of URLs in messages, logs and reprs."""

from __future__ import annotations

import re

_HIDDEN = "***"
# `user:password@`, up to the last @ before a path begins; and, where a password holds an unescaped
# slash, what follows a colon and is no port. FFmpeg takes such URLs, and shows them in its errors.
_USER = re.compile(
    r"(?<=://)(?:[^\s/?#'\"]*@|[^\s/?#:'\"\[]+:(?!\d*(?:[/?#\s'\"]|$))[^\s'\"]*@)",
)
_USER_OF_WHOLE = re.compile(
    r"(?<=://)(?:[^/?#]*@|[^/?#:\[]+:(?!\d*(?:[/?#]|$)).*@)", flags=re.DOTALL
)
# Parameters of a query, or of a path as some cameras have it, by the usual names of secrets.
_PARAMETER = re.compile(
    r"(?P<name>(?:[\w-]*(?:password|passwd|passphrase|pwd|token|secret|signature|credential"
    r"|api_?key|access_?key|auth)[\w-]*|(?<=[?&;])(?:pass|key|sig))=)[^&;#\s'\"]+",
    flags=re.IGNORECASE,
)


def redact(text: str, *urls: str) -> str:
    """Return a text without the credentials of the URLs in it.

    Args:
        text: To be shown.
        urls: URLs that may stand in it. What is known is found whole, whatever its password holds;
            other URLs end at a space or a quote.
    """
    for url in urls:
        if (shown := _PARAMETER.sub(_hide, _USER_OF_WHOLE.sub(f"{_HIDDEN}@", url))) != url:
            text = text.replace(url, shown).replace(repr(url)[1:-1], shown)
    return _PARAMETER.sub(_hide, _USER.sub(f"{_HIDDEN}@", text))


def _hide(parameter: re.Match[str]) -> str:
    return f"{parameter['name']}{_HIDDEN}"
