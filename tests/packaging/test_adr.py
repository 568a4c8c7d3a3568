"""Architecture decision records have one format, and the index lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ADR = Path(__file__).resolve().parents[2] / "docs" / "adr"
RECORDS = sorted(ADR.glob("0*.md"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_record_has_status_context_decision_consequences(path):
    text = path.read_text()
    assert re.match(rf"# {path.name[:4]}: [A-Z].*\n\n\*\*Status:\*\* accepted, \d{{4}}-\d\d", text)
    assert re.findall(r"^## (.*)", text, re.M) == ["Context", "Decision", "Consequences"]
    assert not re.search(r"@@|\bFIGURE\b|\bTODO\b|\bTBD\b", text)


def test_index_lists_every_record_with_its_title():
    rows = re.findall(
        r"^\| \[(\d{4})\]\((\S+)\) \| (.*) \|$", (ADR / "README.md").read_text(), re.M
    )
    assert rows == [
        (path.name[:4], path.name, path.read_text().splitlines()[0].partition(": ")[2])
        for path in RECORDS
    ]
