"""Images for bulk calls, and their results."""

from __future__ import annotations

import numpy as np

from resnet50_client import (
    Classification,
    RetryPolicy,
)
from tests.support.clients import Caller, items
from tests.support.pictures import encode, picture

PNG = encode(picture())
TINY = np.full((1, 1), 7, dtype=np.uint8)
# Decoders stop at the picture's end; the rest makes it an upload of some chunks.
LARGE = PNG + bytes(5 * 2**20)
QUICK = RetryPolicy(initial_backoff_s=0.01, max_backoff_s=0.05)
TIMED = ("--variants", "IMAGENET1K_V2", "--engine", "timed", "--timed-alpha-ms", "3")


async def collect(caller: Caller, name: str, images, **options) -> list:
    return [item async for item in items(caller, name, images, **options)]


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def labels(results: list[Classification]) -> list[str]:
    return [result.top.label for result in results]
