"""The command `resnet50` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any


def environment(server: str | None = None) -> dict[str, str]:
    """Return this process's environment with no settings of the command but the server."""
    found = {key: value for key, value in os.environ.items() if "RESNET50" not in key}
    return found if server is None else found | {"RESNET50_SERVER": server}


def resnet50(*arguments: object, server: str | None = None, **options: Any) -> Any:
    """Run the command to its end."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "resnet50_cli",
            *(os.fspath(_text(argument)) for argument in arguments),
        ],
        capture_output=True,
        env=environment(server),
        timeout=120,
        **options,
    )


def _text(argument: object) -> str | bytes:
    return argument if isinstance(argument, bytes) else str(argument)
