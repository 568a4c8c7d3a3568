"""Control groups of this machine, where it allows them: root, and a writable file system."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

_ROOTS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path | None]:
    """Make a group of limited memory; None where this machine allows none."""
    group = _made(limit)
    try:
        yield group
    finally:
        if group is not None:
            group.rmdir()


def _made(limit: int) -> Path | None:
    name = f"resnet50-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    for root, file in _ROOTS:
        group = root / name
        try:
            group.mkdir()
        except OSError:
            continue
        # Without the file it is a folder of another kind of file system.
        if (group / file).exists():
            with contextlib.suppress(OSError):
                (group / file).write_text(str(limit))
                return group
        group.rmdir()
    return None


def entering(group: Path | None, command: list[str]) -> list[str]:
    """Return what runs a command in a group."""
    if group is None:
        return command
    return ["sh", "-ec", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command]
