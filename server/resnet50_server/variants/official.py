"""The variants that torchvision publishes, read from a copy of its facts.

torchvision's own enums need torch, whose import takes seconds. `official.json` has what they say;
tests/unit/server/test_official.py compares it with the installed torchvision, and
`python -m tests.support.official` writes it anew.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class OfficialWeights:
    """A published file of weights.

    Attributes:
        url: Its address; the name in it has the first digits of the file's SHA-256.
        size_mb: Its size in MB.
        parameters: Number of parameters of the network.
        backend: torch's quantization backend of int8 weights; None for float weights.
    """

    url: str
    size_mb: float
    parameters: int
    backend: str | None

    @property
    def quantized(self) -> bool:
        """True for int8 weights."""
        return self.backend is not None


@functools.cache
def official_facts() -> dict[str, Any]:
    """Return the content of `official.json`: `default`, `categories` and `variants` by name."""
    facts: dict[str, Any] = json.loads(files(__package__).joinpath("official.json").read_text())
    return facts
