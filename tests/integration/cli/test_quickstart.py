"""The quickstart of README.md prints what it says, against the variant that `make serve` serves."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.support.commands import resnet50
from tests.support.serving import server_processes
from tests.support.tutorials import assert_shows

ROOT = Path(__file__).resolve().parents[3]
SHOWN = re.compile(r"^\$ \.venv/bin/resnet50 (.+)\n(.+)$", re.MULTILINE)


def test_quickstart_prints_what_the_readme_shows(built):
    directory, _ = built
    found = SHOWN.search((ROOT / "README.md").read_text())
    assert found is not None
    command, shown = found.groups()
    with server_processes() as start:
        address = start("--variants", f"digits={directory}").wait_until_listening()
        done = resnet50(*shlex.split(command), server=address, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert_shows(shown, done.stdout.decode())
