"""Single keys from the terminal, without waiting for the end of a line."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def keys() -> Iterator[Callable[[], str]]:
    """Give what returns the keys pressed since it was last asked; never blocks.

    The terminal is set back at the end. Where stdin is no terminal, there are no keys.
    """
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield str
        return
    if not sys.stdin.isatty():
        yield str
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed() -> str:
        ready, _, _ = select.select([terminal], [], [], 0)
        return os.read(terminal, 1024).decode(errors="ignore") if ready else ""

    try:
        tty.setcbreak(terminal)  # Ctrl-C goes on being a signal
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
