"""A short run of `python -m fuzz.http`."""

from __future__ import annotations

from fuzz.http import run


def test_mutated_requests_are_answered_or_closed():
    report = run(300, seed=7)
    assert report.findings == []
    assert report.good >= 6
