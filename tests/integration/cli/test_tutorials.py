"""Every code block of docs/tutorials runs as printed, and prints what the page shows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.tutorials import ROOT, assert_shows, blocks, tutorial_run

TUTORIALS = ROOT / "docs" / "tutorials"
# Commands that need a network, a Docker engine or a cluster, and files for these.
ONLINE = re.compile(r"(git|cd|python3|\.|pip|docker|kind|kubectl|cp|rm) ")


def run_page(name: str, folder: Path, done: dict[str, str] | None = None) -> None:
    with tutorial_run(folder, done) as run:
        for block in blocks(TUTORIALS / name):
            run.run(block)


@pytest.fixture
def checkout(digits_tutorial, tmp_path) -> Path:
    """A folder in which the digits have been built."""
    return Path(shutil.copytree(digits_tutorial.folder, tmp_path / "checkout"))


def test_first_classification_runs_as_printed(digits_tutorial, checkout):
    done = {digits_tutorial.command: digits_tutorial.printed}
    assert any(block.text in done for block in blocks(TUTORIALS / "first-classification.md"))
    run_page("first-classification.md", checkout, done)


@pytest.mark.timeout(900)
def test_serve_your_checkpoint_runs_as_printed(tmp_path):
    run_page("serve-your-checkpoint.md", tmp_path / "checkout")


def test_video_runs_as_printed(checkout):
    # The page continues in the folder of first-classification.md.
    run_page("video.md", checkout)


def test_kubernetes_commands_parse_and_files_are_written(tmp_path):
    run_page("kubernetes.md", tmp_path / "checkout")


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_only_commands_that_need_a_network_are_not_run(page):
    for block in blocks(page):
        if block.not_run is not None:
            lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
            wrong = [line for line in lines if line and not ONLINE.match(line)]
            assert wrong == [], str(block)


def test_every_tutorial_has_a_test():
    assert {page.stem for page in TUTORIALS.glob("*.md")} == {
        *("first-classification", "serve-your-checkpoint", "video", "kubernetes"),
    }


SHOWN = "seven.png: seven 98.7%, one 0.9%\nread 400 images in 2.1 s\n…\nSHA-256 93b4…"
PRINTED = "seven.png: seven 97.9%, one 1.2%\nread 400 images in 13 s\na\nb\nSHA-256 93b4c1"


def test_output_may_differ_in_times_and_last_digits():
    assert_shows(SHOWN, PRINTED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seven 97.9%", "eight 97.9%"),
        ("97.9%", "93.0%"),
        ("400 images", "380 images"),
        ("SHA-256", "MD5"),
        ("read 400 images in 13 s\n", ""),
    ],
)
def test_output_that_differs_from_the_page_is_found(old, new):
    with pytest.raises(AssertionError, match="the page shows"):
        assert_shows(SHOWN, PRINTED.replace(old, new))
