"""The command `resnet50` as a process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support import processes


def environment(server: str | None = None) -> dict[str, str]:
    """Return this process's environment with no settings of the command but the server."""
    found = {key: value for key, value in os.environ.items() if "RESNET50" not in key}
    return found if server is None else found | {"RESNET50_SERVER": server}


def resnet50(
    *arguments: object,
    server: str | None = None,
    input: bytes | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end.

    Args:
        arguments: Its arguments; bytes as they are, whatever they are in Unicode.
        server: Of its environment.
        input: Its stdin.
        folder: Its working directory; default: that of this process.
    """
    return processes.run(
        "resnet50",
        *arguments,
        environment=environment(server),
        input=input,
        text=False,
        folder=folder,
    )
