"""Servers whose variants may be changed: folders to load from, tokens to do it with."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from serving import serving

from resnet50_server import loading
from resnet50_server.app import Server
from resnet50_server.tokens import hash_of

ADMIN, APP = "a" * 43, "i" * 43
_SCOPES = {"operator": (ADMIN, ["admin", "infer"]), "app": (APP, ["infer"])}


def describe(directory: Path, categories: Sequence[str] = ("a", "b")) -> None:
    """Write what the null engine reads of a variant: its description."""
    directory.mkdir(parents=True, exist_ok=True)
    transform = {"resize": 232, "crop": 224, "mean": [0.5] * 3, "std": [0.25] * 3}
    content = {"categories": list(categories), "transform": transform}
    (directory / "variant.json").write_text(json.dumps(content))


def tokens_file(folder: Path) -> Path:
    """Write a file of two tokens: ADMIN, which may do anything, and APP, which may not."""
    path = folder / "tokens.toml"
    path.write_text(
        "".join(
            f'[[token]]\nname = "{name}"\nsha256 = "{hash_of(secret).hex()}"\n'
            f"scopes = {json.dumps(scopes)}\n"
            for name, (secret, scopes) in _SCOPES.items()
        )
    )
    return path


@contextlib.asynccontextmanager
async def administered(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """Run a server that loads from `folder`, and takes the tokens ADMIN and APP."""
    options = {"variants_dir": folder, "tokens_file": tokens_file(folder.parent)}
    async with serving(**options | settings) as server:
        yield server


@contextlib.contextmanager
def engines_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let no engine be built before the event is set; it is at the end in any case."""
    open_engine, opened = loading.open_engine, threading.Event()

    def held(*arguments: Any) -> Any:
        opened.wait()
        return open_engine(*arguments)

    monkeypatch.setattr(loading, "open_engine", held)
    try:
        yield opened
    finally:
        opened.set()
