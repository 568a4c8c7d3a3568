"""Single key presses from the terminal, without line buffering."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def keys() -> Iterator[Callable[[], str]]:
    """Return a non-blocking function that returns the keys pressed since its last call.

    The terminal's mode is restored at the end. If stdin is not a terminal, there are no keys.
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
        tty.setcbreak(terminal)  # Ctrl-C still sends SIGINT
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
