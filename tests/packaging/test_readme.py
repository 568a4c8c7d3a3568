"""Python of the documentation runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.administering import ADMIN, describe, tokens_file
from tests.support.pictures import encode, photo_like
from tests.support.serving import server_processes

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


PAGES = README + "".join(
    (ROOT / "docs" / name).read_text()
    for name in (
        "reference/results.md",
        "reference/sdk.md",
        "reference/streams.md",
        "how-to/bulk.md",
        "how-to/canary-and-shadow.md",
        "how-to/migrate-from-torchserve.md",
        "how-to/migrate-from-triton.md",
        "how-to/other-languages.md",
        "how-to/preprocess-at-the-client.md",
        "how-to/trace.md",
        "how-to/use-the-response-cache.md",
        "explanation/streaming.md",
    )
)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGES, re.S))
def test_python_of_the_docs_runs(block, tmp_path):
    for name in ("cat.jpg", "dog.jpg"):
        (tmp_path / name).write_bytes(encode(photo_like(64, 48), "JPEG"))
    runs(block, tmp_path)


VARIANTS = (ROOT / "docs" / "how-to" / "upgrade-weights.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", VARIANTS, re.S))
def test_python_of_the_page_about_variants_runs(block, tmp_path):
    describe(tmp_path / "variants" / "digits")
    (tmp_path / "token").write_text(ADMIN)
    runs(
        block,
        tmp_path,
        *("--variants-dir", str(tmp_path / "variants")),
        *("--tokens-file", str(tokens_file(tmp_path))),
    )


def runs(block: str, folder: Path, *options: str) -> None:
    """Run Python in a folder, against a server that holds one variant."""
    with server_processes() as start:
        server = start("--variants", "IMAGENET1K_V2", "--engine", "null", *options)
        code = block.replace("localhost:50051", server.wait_until_listening())
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
