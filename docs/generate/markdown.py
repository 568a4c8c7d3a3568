"""Markdown that GitHub and the documentation site show alike."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

# Code spans, and links, whose text is not escaped again.
_VERBATIM = re.compile(r"(`+[^`]+`+|\]\([^)]*\))")
# Asterisks that would begin or end emphasis.
_EMPHASIS = re.compile(r"\*(?=\S)|(?<=\S)\*")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells, which are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def escaped(text: str) -> str:
    """Return plain text as Markdown: only code spans and links keep their meaning."""
    parts = _VERBATIM.split(text)
    return "".join(
        part if number % 2 else _EMPHASIS.sub(r"\\*", part.replace("<", "&lt;"))
        for number, part in enumerate(parts)
    )


def paragraphs(text: str) -> str:
    """Return the paragraphs, lists and code of a docstring; text without line breaks."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):
            blocks.append(f"```python\n{textwrap.dedent(block)}\n```")
        elif block.startswith("* "):
            items = re.split(r"^\* ", block, flags=re.MULTILINE)[1:]
            blocks.append("\n".join(f"* {escaped(' '.join(one.split()))}" for one in items))
        else:
            blocks.append(escaped(" ".join(block.split())))
    return "\n\n".join(blocks)


def code(text: str) -> str:
    """Return a code span."""
    return f"`{text}`"


def codes(texts: Iterable[str]) -> str:
    """Return code spans, separated by commas."""
    return ", ".join(map(code, texts))


def anchor(heading: str) -> str:
    """Return the fragment by which GitHub and the site link to a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.replace(" ", "-")


def link(heading: str, page: str = "") -> str:
    """Return a link in code font to a heading of a page; of this page by default."""
    return f"[`{heading}`]({page}#{anchor(heading)})"
