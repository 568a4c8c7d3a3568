"""Locks after a fork: a child has none of the threads that held them, so it needs new ones."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """An object with locks, or with threads of its own."""

    def after_fork(self) -> None:
        """Make new locks, and forget threads; runs in the child, alone."""


_owners: weakref.WeakSet[Forked] = weakref.WeakSet()


def tell_after_fork(owner: Forked) -> None:
    """Have `owner.after_fork` called in the children of this process, while it is used."""
    _owners.add(owner)


def _after_fork() -> None:
    for owner in list(_owners):
        owner.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
