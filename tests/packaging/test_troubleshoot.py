"""Each message that docs/how-to/troubleshoot.md names is a text of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "troubleshoot.md").read_text()
# Stands for a variable part of a text.
VARIABLE = "\0"
_PERCENT = re.compile(r"%[-+.0-9]*[sdgfr]")


def texts(source: str) -> Iterator[str]:
    """Yield the texts of a module, adjacent literals joined, with marks for variable parts."""
    tree = ast.parse(source)
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else VARIABLE
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield "" if id(node) in parts else _PERCENT.sub(VARIABLE, node.value)


def messages(page: str) -> Iterator[str]:
    """Yield the messages of a page: the first cells of tables whose first heading is "message"."""
    rows: list[str] = re.findall(r"^\| message \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.M)
    for table in rows:
        for row in table.splitlines():
            yield from re.findall(r"`([^`]+)`", row.split(" | ")[0])


def is_in(message: str, known: str) -> bool:
    """Return whether the fixed parts of a message are in a text, one after the other.

    Variable parts of the message match variable parts of the texts, and anything between them.
    """
    fixed = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
    return re.search("[^\n]*?".join(fixed), known) is not None


@pytest.fixture(scope="module")
def known() -> str:
    paths = [*(ROOT / "server").rglob("*.py"), *(ROOT / "client").rglob("*.py")]
    found = {text.replace("\n", " ") for path in paths for text in texts(path.read_text())}
    return "\n".join(sorted(found))


@pytest.mark.parametrize("message", sorted(set(messages(PAGE))))
def test_each_message_of_the_page_is_in_the_code(message, known):
    assert is_in(message, known)


def test_a_message_that_no_code_has_is_found(known):
    page = "| message | cause |\n|---|---|\n| `variant ... is on holiday` | |\n"
    assert [is_in(message, known) for message in messages(page)] == [False]


def test_the_page_names_many_messages():
    assert len(set(messages(PAGE))) > 60
