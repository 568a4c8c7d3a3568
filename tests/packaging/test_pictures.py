"""The pictures of the documentation are those that their sources draw, and have a dark mode."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.draw import delivery, screenshot
from docs.draw.__main__ import PICTURES, main

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS.parent / "README.md", *DOCS.rglob("*.md")]
FILES = sorted(DOCS.rglob("*.svg"))


def test_pictures_are_drawn_from_their_sources(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_stale_picture_is_found(tmp_path, capsys):
    assert main([], folder=tmp_path) == 0
    (tmp_path / "swap.svg").write_text("stale")
    assert main(["--check"], folder=tmp_path) == 1
    assert capsys.readouterr().err.splitlines() == [
        "swap.svg is not what docs/draw draws: run `make pictures`"
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_picture_has_a_dark_mode_and_loads_nothing(file):
    text = file.read_text()
    assert "@media (prefers-color-scheme: dark)" in text
    assert not re.search(r'(href|src)="(?!#)|url\((?!#)|@import|<script', text)
    assert ElementTree.fromstring(text).tag.endswith("svg")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_picture_is_on_a_page_with_alternative_text(file):
    shown = [
        alternative
        for page in PAGES
        for alternative, target in re.findall(r"!\[([^\]]*)\]\(([^)]+\.svg)\)", page.read_text())
        if (page.parent / target).resolve() == file
    ]
    assert shown and all(len(alternative) > 30 for alternative in shown)


def test_screenshots_show_the_report_of_the_data():
    assert screenshot.stale() == [], "run `make screenshots`"


def test_screenshot_of_another_report_is_found(monkeypatch, tmp_path):
    other = tmp_path / "bench.json"
    other.write_bytes(screenshot.DATA.read_bytes() + b" ")
    monkeypatch.setattr(screenshot, "SOURCES", (other, *screenshot.SOURCES[1:]))
    assert screenshot.stale() == ["bench-report-light.png", "bench-report-dark.png"]


def test_screenshots_are_on_a_page_with_alternative_text():
    page = DOCS / "how-to" / "load-test.md"
    (shown,) = re.findall(r"<picture>.*?</picture>", page.read_text(), re.S)
    dark, light = re.findall(r'src(?:set)?="([^"]+)"', shown)
    assert (page.parent / dark).resolve() == screenshot.path_of("dark")
    assert (page.parent / light).resolve() == screenshot.path_of("light")
    (alternative,) = re.findall(r'alt="([^"]+)"', shown)
    assert len(alternative) > 30


def test_titles_of_pictures_are_sentences():
    for draw in PICTURES.values():
        title = re.findall(r"<title>(.+)</title>", draw())
        assert len(title) == 1 and len(title[0].split()) > 5


def test_latest_delivery_answers_the_last_frame_in_two_batches():
    frames = delivery.latest()
    answered = [frame for frame in frames if frame.start is not None]
    assert frames[-1].start is not None
    assert len(answered) < len(frames)
    assert all(frame.answered - frame.taken <= 2 * delivery.BATCH_S for frame in answered)
    assert all(frame.start is not None for frame in delivery.ordered())
