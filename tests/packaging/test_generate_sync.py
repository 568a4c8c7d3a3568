"""The generator of the blocking client: words, types, and the check for drift."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "client" / "generate_sync.py"
SPEC = importlib.util.spec_from_file_location("generate_sync", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
generate_sync = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate_sync)


@pytest.mark.parametrize(
    ("asynchronous", "blocking"),
    [
        ("async def a(self): return await b()", "def a(self): return b()"),
        ("async with aclosing(a) as b:", "with closing(a) as b:"),
        ("async for one in AsyncStream(a):", "for one in Stream(a):"),
        ("def __aenter__(self): await a.aclose()", "def __enter__(self): a.close()"),
        ("from ._async_client import AsyncClient", "from ._client import Client"),
        ("from ._async_stream import AsyncStream", "from ._sync_stream import Stream"),
        ("a: Iterable[B] | AsyncIterable[tuple[K, B]],", "a: Iterable[B],"),
        ("-> AsyncGenerator[A[B], None]:", "-> Generator[A[B], None, None]:"),
        ("check(a, asynchronous=True)", "check(a, asynchronous=False)"),
        ("awaited = synchronous(asynchronous)", "awaited = synchronous(asynchronous)"),
    ],
)
def test_asynchronous_code_becomes_blocking(asynchronous, blocking):
    header, _, generated = generate_sync.blocking(asynchronous, "_async_a.py").partition("\n")
    assert header == "# Generated from _async_a.py by client/generate_sync.py; do not edit."
    assert generated == blocking


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a copy of the package, which the script works on."""
    package = tmp_path / "resnet50_client"
    shutil.copytree(generate_sync.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(generate_sync, "PACKAGE", package)
    # The style is configured there.
    shutil.copy(SCRIPT.parents[1] / "pyproject.toml", tmp_path)
    return package


def run(monkeypatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generate_sync.py", *options])
    return generate_sync.main()


def test_edited_module_is_named_and_generated_again(package, monkeypatch, capsys):
    assert run(monkeypatch, "--check") == 0
    with (package / "_client.py").open("a") as file:
        file.write("# edited\n")
    assert run(monkeypatch, "--check") == 1
    assert "_client.py is not what its source generates: run `make sync`" in capsys.readouterr().err
    assert run(monkeypatch) == 0
    assert run(monkeypatch, "--check") == 0


def test_phrase_that_no_source_contains_is_refused(package, monkeypatch):
    monkeypatch.setitem(generate_sync.PHRASES, "an old phrase", "another")
    with pytest.raises(SystemExit, match="'an old phrase' is in no source"):
        run(monkeypatch, "--check")
