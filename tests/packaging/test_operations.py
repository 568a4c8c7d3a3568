"""Promises of the fault model and of the reliability trials name tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("explanation/fault-model.md", "benchmarks/reliability.md")


def known_tests() -> set[str]:
    """Return the names of all test functions."""
    names = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
    return {name for name in names if name.startswith("test_")}


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page):
    text = (ROOT / "docs" / page).read_text()
    files = set(re.findall(r"`(?:[a-z]+/)*(test_\w+\.py)`", text))
    assert files <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= known_tests(), named - known_tests()
    assert named or files


def test_every_entry_names_an_existing_test_or_a_reason():
    text = (ROOT / "docs" / "benchmarks" / "reliability.md").read_text()
    _, _, table = text.partition("| entry | fault in 0.1 | now | held by |")
    table, _, _ = table.partition("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    entries = {row[0].strip() for row in rows}
    wanted = [f"R{number}" for number in range(1, 25)] + [f"B{number}" for number in range(1, 23)]
    wanted += [f"attack {number}" for number in range(1, 11)]
    missing = [one for one in wanted if not any(re.match(rf"{one}\b", name) for name in entries)]
    assert not missing
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", table):
        source = ROOT / path
        assert source.is_file(), path
        if name:
            assert re.search(
                rf"^(?:async )?def {name}\b|^{name} = |^class {name}\b", source.read_text(), re.M
            ), (
                path,
                name,
            )


def test_every_fault_names_its_tests():
    text = (ROOT / "docs" / "explanation" / "fault-model.md").read_text()
    faults = re.findall(r"^\| (F\d+) \| (?!`)", text, re.M)
    tests = re.findall(r"^\| (F\d+) \| `test_\w+`", text, re.M)
    assert faults == tests == [f"F{number + 1}" for number in range(len(faults))]
    assert len(faults) > 20


def test_every_exit_status_of_the_code_is_explained():
    """Exit codes of the process itself; 128 and above come from signals."""
    text = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    explained = {int(status) for status in re.findall(r"^\| (\d+) \|", text, re.M)}
    docstring = (ROOT / "server" / "resnet50_server" / "cli" / "serve.py").read_text()
    returns = re.findall(r"Returns:\n(.*?)\"\"\"", docstring, re.S)[0]
    named = {int(one) for one in re.findall(r"\b(\d{1,2})\b", returns)}
    assert named <= explained, named - explained
