"""Issue templates are forms that GitHub accepts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).resolve().parents[2] / ".github" / "ISSUE_TEMPLATE"


@pytest.mark.parametrize(
    ("schema", "names"),
    [("forms", ["bug.yml", "feature.yml"]), ("config", ["config.yml"])],
)
def test_issue_template_is_valid(schema, names):
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", f"vendor.github-issue-{schema}"]
    done = subprocess.run(
        [*command, *(TEMPLATES / name for name in names)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_template_is_checked():
    assert {path.name for path in TEMPLATES.iterdir()} == {"bug.yml", "feature.yml", "config.yml"}
