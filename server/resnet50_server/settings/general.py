"""The group of the configuration file and the process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from resnet50_settings.groups import Group


class General(Group):
    """The configuration file, and the process."""

    title = "General"

    config: Annotated[
        Path | None,
        Field(description="TOML file with these settings, named with underscores."),
    ] = None
    stop_with_stdin: Annotated[
        bool,
        Field(
            description="Stop, as on SIGTERM, when standard input ends: for a parent process that"
            " keeps the other end of a pipe, and may be killed."
        ),
    ] = False
