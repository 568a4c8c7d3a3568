"""Metadata of requests: the keys that clients may set, and their values."""

from __future__ import annotations

import re
from random import getrandbits

from resnet50_server.context import BULK, INTERACTIVE, Metadata
from resnet50_server.errors import InvalidRequest

from .call import Call

# Logged, and sent back in the trailing metadata.
REQUEST_ID_KEY = "x-request-id"
PRIORITY_KEY = "x-priority"
# Identifies the caller to traffic splits.
CALLER_KEY = "x-caller-key"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CALLER_KEY = re.compile(r"[ -~]{1,128}")


def request_id(metadata: Metadata) -> str:
    """Return the client's request ID, or a random one if it sent none that is valid."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    # Not uuid4: it makes a system call, and releases the GIL for that.
    return f"{getrandbits(128):032x}"


def read_options(call: Call) -> None:
    """Set a call's priority and its key for traffic splits.

    Raises:
        InvalidRequest: One of them is not valid.
    """
    for key, value in call.metadata:
        if key == PRIORITY_KEY:
            if value not in (INTERACTIVE, BULK):
                raise InvalidRequest(
                    PRIORITY_KEY, f"(metadata) must be {INTERACTIVE!r} or {BULK!r}"
                )
            call.bulk = value == BULK
        elif key == CALLER_KEY:
            if not isinstance(value, str) or not _CALLER_KEY.fullmatch(value):
                raise InvalidRequest(
                    CALLER_KEY, "(metadata) must be 1 to 128 printable ASCII characters"
                )
            call.key = value
