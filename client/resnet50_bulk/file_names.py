"""File names in text: names that are not UTF-8 survive where only UTF-8 can be written.

Python represents the bytes of such a name by lone surrogates, which other languages' JSON parsers,
CSV and Parquet files cannot hold. There the name becomes a `file:` URI with percent-encoding
(RFC 8089), "file:photos/caf%E9.jpg", whose bytes are restored by decoding it. All other names are
written as they are, except those that begin with "file:" themselves.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

SCHEME = "file:"
_SURROGATE = re.compile("[\ud800-\udfff]")


def name_to_text(name: str) -> str:
    """Return a file name as valid Unicode text, from which `text_to_name` restores it."""
    if _SURROGATE.search(name) is None and not name.startswith(SCHEME):
        return name
    return SCHEME + quote_from_bytes(os.fsencode(name))


def text_to_name(text: str) -> str:
    """Return the file name that `name_to_text` wrote."""
    if not text.startswith(SCHEME):
        return text
    return os.fsdecode(unquote_to_bytes(text.removeprefix(SCHEME)))
