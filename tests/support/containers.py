"""A container's process without a container engine: a read-only root, another user, its volumes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .deployments import ROOT

# Any user id but those of the image and of this machine, in group 0 as on OpenShift.
USER = "12345:0"
SYSTEM = ("bin", "dev", "lib", "lib32", "lib64", "proc", "sbin", "sys", "usr")


def isolates() -> bool:
    """Return whether this process may make mount namespaces."""
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mount",
        "-t",
        "tmpfs",
        "t",
        "/mnt",
    ]
    try:
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def contained(
    command: Sequence[str],
    environment: Mapping[str, str],
    volumes: Mapping[str, Path | None],
    root: Path,
) -> tuple[list[str], dict[str, str]]:
    """Return a command, with its environment, that runs as in a container.

    The root file system is read-only and has the system's directories, Python and the repository;
    the user is neither root nor known. Without the right to do that the command runs as it is, with
    the directories below `root` as its volumes.

    Args:
        command: Of the container.
        environment: Of the container; replaces this process's own.
        volumes: By their mount paths: a directory that is mounted read-only, or None for an empty
            one that the process may write.
        root: A directory that does not exist yet.
    """
    root.mkdir()
    if not isolates():
        return list(command), dict(_moved(environment, volumes, root))
    code = {ROOT, *map(Path, (sys.prefix, sys.base_prefix, *sys.path))}
    bound = {path: path for path in (*(Path("/", name) for name in SYSTEM), *code)}
    # Volumes may be below /etc, where nothing can be made in that of this machine.
    steps = [f"mount -t tmpfs -o mode=755 root {root}", f"cp -a /etc {root}/etc"]
    mounted = [
        (path, source)
        for path, source in sorted(bound.items())
        if source.is_dir() and not any(path != one and path.is_relative_to(one) for one in bound)
    ]
    mounted += [(Path(path), source) for path, source in volumes.items() if source is not None]
    # First: the repository may be below one of them, as in /tmp.
    for empty in (path for path, source in volumes.items() if source is None):
        target = root / empty.lstrip("/")
        steps += [f"mkdir -p {target}", f"mount -t tmpfs -o mode=1777 volume {target}"]
    for path, source in mounted:
        target = root / path.relative_to("/")
        steps += [f"mkdir -p {target}", f"mount --rbind {source} {target}"]
        if source not in map(Path, ("/dev", "/proc", "/sys")):
            steps.append(f"mount -o remount,bind,ro {target}")
    steps.append(f"mount -o remount,ro {root}")
    variables = [f"{name}={value}" for name, value in environment.items()]
    inner = ["chroot", f"--userspec={USER}", "--groups=0", root, "env", "-i", *variables, *command]
    steps.append(f"exec {shlex.join(map(str, inner))}")
    isolated = ["unshare", "--mount", "--propagation", "private"]
    return [*isolated, "sh", "-euc", "\n".join(steps)], dict(os.environ)


def _moved(
    environment: Mapping[str, str], volumes: Mapping[str, Path | None], root: Path
) -> Mapping[str, str]:
    moved = dict(os.environ) | dict(environment)
    for path, source in volumes.items():
        place = source or root / path.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        for name, value in moved.items():
            if value == path or value.startswith(f"{path}/"):
                moved[name] = f"{place}{value[len(path) :]}"
    return moved
