"""The docs say what is true: its options are the settings, its Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import encode, photo_like
from serving import server_processes

from resnet50_server.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def option_rows() -> str:
    """Return the configuration table as it has to be."""
    rows = ["| flag | environment | default | what |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, list):
            default = ", ".join(default) or None
        if isinstance(default, bool):
            default = str(default).lower()
        shown = "" if default is None else f"`{default}`"
        flag = "--" + name.replace("_", "-")
        rows.append(f"| `{flag}` | `{ENV_PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_configuration_table_is_the_settings():
    assert option_rows() in README, "the table has to be:\n" + option_rows()


PAGES = README + "".join(
    (ROOT / "docs" / name).read_text() for name in ("streaming.md", "tracing.md")
)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGES, re.S))
def test_python_of_the_docs_runs(block, tmp_path):
    for name in ("cat.jpg", "dog.jpg"):
        (tmp_path / name).write_bytes(encode(photo_like(64, 48), "JPEG"))
    with server_processes() as start:
        address = start("--variants", "IMAGENET1K_V2", "--engine", "null").wait_until_listening()
        code = block.replace("localhost:50051", address)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
