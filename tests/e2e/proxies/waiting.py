"""Waits with a limit that says which ones have not come so far."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.e2e.proxies.callers import NotAsPromised

# Time limit of everything.
PATIENCE_S = 60.0


def wait_until(missing: Callable[[], list[str]], problem: str) -> None:
    """Wait until nothing is missing.

    Args:
        missing: Returns the names that are.
        problem: Their description if they still are in the end.

    Raises:
        NotAsPromised: Some are missing after a minute.
    """
    ends = time.monotonic() + PATIENCE_S
    while names := missing():
        if time.monotonic() > ends:
            raise NotAsPromised(f"{', '.join(names)}: {problem}")
        time.sleep(0.02)
