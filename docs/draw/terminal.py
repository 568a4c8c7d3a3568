"""Output of a command in a terminal, rendered by rich, in colours that follow the page's mode."""

from __future__ import annotations

import io
import re

from rich.console import Console, RenderableType
from rich.style import Style

from .svg import Picture

_COLUMN, _ROW, _MARGIN = 7.7, 17.0, 12.0
_TONES = {"green": "green", "yellow": "orange", "red": "red", "cyan": "blue"}
# Words between which there is one space at most.
_WORDS = re.compile(r"\S+(?: \S+)*")


def draw(shown: RenderableType, title: str, columns: int = 80) -> str:
    """Return the picture of the output.

    Args:
        shown: The output.
        title: The picture's title.
        columns: Width of the terminal.
    """
    console = Console(width=columns, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    lines = console.render_lines(shown, pad=False)
    width = columns * _COLUMN + 2 * _MARGIN
    picture = Picture(width, len(lines) * _ROW + 2 * _MARGIN, title)
    picture.box(1, 1, width - 2, len(lines) * _ROW + 2 * _MARGIN - 2, tone="grey")
    for row, line in enumerate(lines):
        column = 0
        for segment in line:
            style = segment.style or Style()
            for words in _WORDS.finditer(segment.text):
                picture.monospaced(
                    _MARGIN + (column + words.start()) * _COLUMN,
                    _MARGIN + (row + 0.75) * _ROW,
                    words[0],
                    column=_COLUMN,
                    tone=_tone(style),
                    bold=bool(style.bold),
                )
            column += segment.cell_length
    return picture.svg()


def _tone(style: Style) -> str:
    color = style.color.name if style.color is not None else ""
    return _TONES.get(color, "muted" if style.dim else "ink")
