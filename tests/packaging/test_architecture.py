"""The picture of the architecture, and the map in CONTRIBUTING.md, show the packages there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGES = {path.parent.name for path in (ROOT / "server/resnet50_server").glob("*/__init__.py")}


def labels() -> dict[str, list[str]]:
    """Return the nodes of the picture's source, each with the lines of its label."""
    found = re.findall(r'^ +(\w+) \[label="([^"]+)"', (DOCS / "architecture.dot").read_text(), re.M)
    return {name: label.split("\\n") for name, label in found}


def test_the_picture_has_every_package_of_the_server():
    others = {"protos", "resnet50_bulk", "resnet50_cli", "resnet50_client", "server"}
    assert labels().keys() - PACKAGES == others
    assert labels().keys() >= PACKAGES


def test_the_picture_is_drawn_from_its_source():
    drawn = (DOCS / "architecture.svg").read_text()
    for lines in labels().values():
        for line in lines:
            assert f">{line.replace('&', '&amp;')}</text>" in drawn, (
                f"{line!r}: run `make pictures`"
            )


def test_the_map_has_one_short_line_for_each_package():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.split("| what belongs there |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.+) \| (.+) \|$", table, re.M)
    assert len(rows) <= 15
    assert {name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)} == PACKAGES
    assert all(len(purpose) <= 120 for _, purpose in rows)
