"""CHANGELOG.md has one form, and its latest release is the version."""

from __future__ import annotations

import re
from pathlib import Path

import resnet50_client

TEXT = (Path(__file__).resolve().parents[2] / "CHANGELOG.md").read_text()
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
# In lines, without headings: for reading, not for searching.
RELEASE_LINES = 25


def sections() -> dict[str, str]:
    """Return the text of each version by its heading, in order."""
    _, *parts = re.split(r"^## (.*)\n", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_unreleased_changes_are_above_the_released_version():
    first, second, *_ = sections()
    assert first == "[Unreleased]"
    found = re.fullmatch(r"\[(\S+)\] - \d{4}-\d\d-\d\d", second)
    assert found is not None, second
    assert resnet50_client.__version__ == found[1]


def test_each_kind_of_change_has_one_list_in_the_order_of_the_form():
    for version, text in sections().items():
        found = re.findall(r"^### (.*)", text, re.MULTILINE)
        assert found == [kind for kind in KINDS if kind in found], version


def test_released_versions_are_short_enough_to_read():
    for version, text in list(sections().items())[1:]:
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert len(lines) <= RELEASE_LINES, version


def test_no_entry_occurs_twice():
    entries = re.findall(r"^- .*", TEXT, re.MULTILINE)
    assert len(entries) == len(set(entries))
