"""Limits of this process's control groups, of which Linux has two versions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeAlias

Read: TypeAlias = Callable[[Path], tuple[float | None, Path]]
"""Reads the limit in a group's directory, None if there is none, and names its file."""


def smallest(root: Path, controller: str, v2: Read, v1: Read) -> tuple[float, Path] | None:
    """Return the smallest limit of this process's group and all groups above, and its file.

    Args:
        root: Directory with `proc/self/cgroup`, `proc/self/mountinfo` and their mount points.
        controller: Name of the controller in version 1, e.g. "cpu".
        v2: Reads the limit of a group of version 2.
        v1: The same of version 1.

    Returns:
        The limit, and its file below `/`; None if there is no limit.
    """
    found = [
        (limit, file)
        for folder, read in _groups(root, controller, v2, v1)
        for limit, file in [read(folder)]
        if limit is not None
    ]
    if not found:
        return None
    limit, file = min(found)
    return limit, Path("/") / file.relative_to(root)


def lines(file: Path) -> list[str]:
    """Return the lines of a file; none if it cannot be read, as on other systems."""
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []


def _groups(root: Path, controller: str, v2: Read, v1: Read) -> Iterator[tuple[Path, Read]]:
    """Yield the directories of this process's group and its ancestors, each with its reader."""
    paths = _cgroup_paths(root)
    for line in lines(root / "proc/self/mountinfo"):
        # 31 23 0:28 / /sys/fs/cgroup rw,relatime shared:1 - cgroup2 cgroup2 rw
        before, _, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if len(mount) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            path, read = paths.get(""), v2
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            path, read = paths.get(controller), v1
        else:
            continue
        shown, point = PurePosixPath(_unescaped(mount[3])), _unescaped(mount[4])
        top = root / point.lstrip("/")
        below = PurePosixPath()
        # A path outside the mount belongs to a namespace that is invisible here; then the top of
        # the mount is the nearest directory that can be read.
        if path is not None and ".." not in path.parts and path.is_relative_to(shown):
            below = path.relative_to(shown)
        for folder in (below, *below.parents) if below.parts else (below,):
            yield top / folder, read


def _cgroup_paths(root: Path) -> dict[str, PurePosixPath]:
    """Return the paths of this process's cgroups by their v1 controller; v2 has the key ""."""
    paths = {}
    for line in lines(root / "proc/self/cgroup"):
        # 0::/kubepods/pod1, or 4:cpu,cpuacct:/docker/1
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            paths[controller] = PurePosixPath(path)
    return paths


def _unescaped(path: str) -> str:
    """Return a path of mountinfo, which writes special characters as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
