"""Threads of the code under test, found by their names."""

from __future__ import annotations

import threading


def join_threads(name: str) -> None:
    """Wait, for at most a minute, until no thread of this name runs."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(60)
            assert not thread.is_alive(), f"the thread {name!r} does not end"
