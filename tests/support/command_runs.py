"""Runs of the command `resnet50` beside a server in the test's event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import Any

from tests.support.processes import ForkedProcess, start


class Command:
    """A run of `resnet50`."""

    def __init__(self, process: ForkedProcess | subprocess.Popen[Any]) -> None:
        self.process = process

    @classmethod
    async def start(cls, *arguments: object, server: Any) -> Command:
        environment = {key: value for key, value in os.environ.items() if "RESNET50" not in key}
        address = server if isinstance(server, str) else server.addresses[0]
        environment["RESNET50_SERVER"] = address
        process = await asyncio.to_thread(
            lambda: start("resnet50", *arguments, environment=environment)
        )
        return cls(process)

    async def end(self) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        stdout, stderr = await asyncio.to_thread(self.process.communicate, timeout=60)
        return self.process.wait(), stdout, stderr

    async def says(self, words: str) -> None:
        """Return when a line of stderr holds these words."""
        assert self.process.stderr is not None  # a pipe
        while words not in (line := await asyncio.to_thread(self.process.stderr.readline)):
            assert line, f"ended without saying {words!r}"


async def resnet50(*arguments: object, server: Any) -> tuple[int, str, str]:
    return await (await Command.start(*arguments, server=server)).end()
