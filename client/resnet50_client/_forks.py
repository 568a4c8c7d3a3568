"""Reset of locks after a fork: the threads that held them do not exist in the child."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """An object with locks or threads."""

    def after_fork(self) -> None:
        """Create new locks and discard threads; runs in the child, single-threaded."""


_owners: weakref.WeakSet[Forked] = weakref.WeakSet()


def tell_after_fork(owner: Forked) -> None:
    """Call `owner.after_fork` in child processes, as long as `owner` exists."""
    _owners.add(owner)


def _after_fork() -> None:
    for owner in list(_owners):
        owner.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
