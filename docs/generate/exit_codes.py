"""The exit codes of both commands."""

from __future__ import annotations

from resnet50_cli.output import EXIT_CODES as CLIENT
from resnet50_server.cli.exit_codes import SERVE

from .markdown import escaped, table


def section(command: str) -> str:
    """Return the table of one command: "resnet50" or "resnet50-server"."""
    if command == "resnet50":
        return table(
            ("code", "meaning"), ((str(one), escaped(text)) for one, text in CLIENT.items())
        )
    rows = ((str(one.code), escaped(one.meaning), escaped(one.restart)) for one in SERVE)
    return table(("code", "meaning", "restart"), rows)
