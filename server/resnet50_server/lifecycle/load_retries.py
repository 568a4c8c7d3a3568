"""Retries of directories whose load failed for a transient reason, with growing pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from dataclasses import dataclass

from resnet50_server.variants.directory import Fingerprint

# The longest pause before a load that failed for a transient reason is retried.
MAX_RETRY_PAUSE_S = 300.0


@dataclass(frozen=True)
class _Retry:
    """A directory that could not be loaded for a transient reason.

    Attributes:
        fingerprint: Of its files then; it is retried at once when they change.
        pause_s: The pause before the next attempt, in seconds.
        due_s: Time of the next attempt, on the event loop's clock.
    """

    fingerprint: Fingerprint
    pause_s: float
    due_s: float


class LoadRetries:
    """The directories to load again, by name. Event loop only.

    Args:
        first_pause_s: The pause before the first retry, in seconds; each further one is twice as
            long, up to `MAX_RETRY_PAUSE_S`.
    """

    def __init__(self, first_pause_s: float) -> None:
        self._first_pause_s = first_pause_s
        self._retries: dict[str, _Retry] = {}

    def is_due(self, name: str, fingerprint: Fingerprint) -> bool:
        """Return whether to load a directory now, for the first time or again."""
        retry = self._retries.get(name)
        if retry is None or retry.fingerprint != fingerprint:
            return True
        return asyncio.get_running_loop().time() >= retry.due_s

    def schedule(self, name: str, fingerprint: Fingerprint) -> None:
        """Schedule another attempt, after twice the last pause."""
        before, pause_s = self._retries.get(name), self._first_pause_s
        if before is not None and before.fingerprint == fingerprint:
            pause_s = min(MAX_RETRY_PAUSE_S, 2 * before.pause_s)
        due_s = asyncio.get_running_loop().time() + pause_s
        self._retries[name] = _Retry(fingerprint, pause_s, due_s)

    def forget(self, name: str) -> None:
        """Remove a directory that is loaded."""
        self._retries.pop(name, None)

    def keep(self, names: Container[str]) -> None:
        """Remove all directories but those with these names."""
        self._retries = {name: one for name, one in self._retries.items() if name in names}
