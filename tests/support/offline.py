"""Folders of images, some of them broken, and workers for them."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.outputs import read_output
from tests.support.processes import start

BROKEN = b"\xff\xd8\xff\xe0 no more of a JPEG"
# A run that lasts until one of its processes is killed: each batch of a worker takes 200 ms.
SLOW = {"engine": "timed", "timed_alpha_ms": 200, "timed_beta_ms": 0, "max_batch_size": 32}
FILES, BROKEN_FILES = 2000, 20


def colour(number: int) -> tuple[int, int, int]:
    return (number % 250, number // 250 * 10, 77)


def write_images(folder: Path, count: int, broken: int = 0) -> list[str]:
    """Write small images, evenly spread ones of them broken; return the names of the broken."""
    folder.mkdir()
    every = count // broken if broken else count + 1
    bad = []
    for number in range(count):
        path = folder / f"{number:05}.png"
        if broken and number % every == every // 2 and len(bad) < broken:
            path.write_bytes(BROKEN)
            bad.append(str(path))
        else:
            Image.new("RGB", (8, 8), colour(number)).save(path)
    return bad


def start_local(*arguments: object, **settings: Any) -> Any:
    """Start `resnet50 embed` with settings of the worker; by default the null engine."""
    environment = {key: value for key, value in os.environ.items() if "RESNET50" not in key}
    for name, value in {"engine": "null", **settings}.items():
        environment[f"RESNET50_{name.upper()}"] = str(value)
    return start("resnet50", "embed", *arguments, environment=environment)


def embed_local(*arguments: object, **settings: Any) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a run."""
    process = start_local("--local", *arguments, **settings)
    stdout, stderr = process.communicate(timeout=240)
    return process.wait(), stdout, stderr


def saved(partial: Path) -> set[str]:
    """Return the names of the images whose vectors a checkpoint has."""
    if not partial.exists():
        return set()
    with closing(sqlite3.connect(f"{partial.as_uri()}?mode=ro", uri=True, timeout=60)) as database:
        try:
            rows = database.execute("SELECT path FROM images WHERE error IS NULL").fetchall()
        except sqlite3.OperationalError as error:  # its tables are not there yet
            assert "no such table" in str(error)
            return set()
    return {os.fsdecode(path) for (path,) in rows}


def assert_each_once(out: Path, folder: Path, broken: list[str]) -> None:
    """Make sure that an output has each file of a folder once, the broken ones with an error."""
    found = read_output(out)
    files = sorted(map(str, folder.iterdir()))
    assert sorted(found.errors) == sorted(broken)
    assert found.paths == [name for name in files if name not in found.errors]
    assert [file.name for file in out.parent.iterdir() if file.name.startswith(out.name)] == [
        out.name
    ]
