"""Markdown that GitHub and the documentation site show alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Code spans, and links, whose text is not escaped again.
_VERBATIM = re.compile(r"(`+[^`]+`+|\]\([^)]*\))")


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
        part if number % 2 else part.replace("<", "&lt;").replace("*", "\\*")
        for number, part in enumerate(parts)
    )


def paragraphs(text: str) -> str:
    """Return the paragraphs and lists of a docstring, each item on one line; code as it is."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    ") or block.startswith("```"):
            blocks.append(block)
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
