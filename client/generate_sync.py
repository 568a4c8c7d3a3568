"""Generate the blocking client from the asyncio client, or check that it is current.

    python client/generate_sync.py            generate
    python client/generate_sync.py --check    exit 1 if a module is not what would be generated

Only modules without I/O of their own are generated. Threads and tasks differ too much for
`_sync_calls.py` and `_sync_stream.py`, which are written by hand
(docs/adr/0034-blocking-client-is-generated.md).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "resnet50_client"
MODULES = {
    "_async_admin.py": "_admin.py",
    "_async_base_client.py": "_base_client.py",
    "_async_bulk_client.py": "_bulk_client.py",
    "_async_client.py": "_client.py",
}
# Texts that differ; each has to occur in a source.
PHRASES = {
    "The asyncio client": "The blocking client",
    "the asyncio clients": "the blocking clients",
    "Asyncio client": "Blocking client",
    "Can be used by many tasks concurrently, all on the event loop of its first call.": (
        "Thread-safe. Create it after a fork, not before."
    ),
    "asynchronous=True": "asynchronous=False",
    "Interceptors of `grpc.aio`": "Interceptors of `grpc`",
}
# Applied in this order to the whole text, docstrings included.
WORDS = {
    r"\basync (?=def|with|for)": "",
    r"\bawait ": "",
    r"\ba(?=closing\b|close\b|next\b|iter\b)": "",
    r"\b__a(?=enter__|exit__|iter__|next__)": "__",
    r"\b_async_(?=admin\b|base_client\b|bulk_client\b|client\b)": "_",
    r"\b_async_": "_sync_",
    r"\bStopAsyncIteration\b": "StopIteration",
    r"\bAsync(?=[A-Z]\w*)": "",
}


def blocking(source: str, name: str) -> str:
    """Return the blocking module for the text of an asyncio module.

    Args:
        source: The text.
        name: File name of the asyncio module, for the header.
    """
    for old, new in PHRASES.items():
        source = source.replace(old, new)
    source = _without_alternative(source, " | AsyncIterable[")
    source = _with_three_parameters(source)
    for pattern, new in WORDS.items():
        source = re.sub(pattern, new, source)
    return f"# Generated from {name} by client/generate_sync.py; do not edit.\n{source}"


def _end_of(source: str, start: int) -> int:
    """Return the position of the bracket that closes the one before `start`."""
    depth = 1
    while depth:
        depth += {"[": 1, "]": -1}.get(source[start], 0)
        start += 1
    return start - 1


def _without_alternative(source: str, opening: str) -> str:
    """Remove a member of unions: "A[...] | AsyncIterable[...]" becomes "A[...]"."""
    while (at := source.find(opening)) >= 0:
        source = source[:at] + source[_end_of(source, at + len(opening)) + 1 :]
    return source


def _with_three_parameters(source: str) -> str:
    """Replace AsyncGenerator[X, None] by Generator[X, None, None]."""
    opening = "AsyncGenerator["
    while (at := source.find(opening)) >= 0:
        start = at + len(opening)
        end = _end_of(source, start)
        source = f"{source[:at]}Generator[{source[start:end]}, None]{source[end + 1 :]}"
    return source


def formatted(source: str, path: Path) -> str:
    """Return the text without unused imports, sorted and formatted by ruff."""
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--fix", "--select=F401,I"], ["format"]):
        done = subprocess.run(
            [*ruff, *command, "--quiet", f"--stdin-filename={path}", "-"],
            input=source,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{path.name}: ruff failed: {done.stderr or done.stdout}")
        source = done.stdout
    return source


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    sources = {name: (PACKAGE / name).read_text() for name in MODULES}
    for phrase in PHRASES:
        if not any(phrase in source for source in sources.values()):
            raise SystemExit(f"{phrase!r} is in no source: remove it from PHRASES")
    stale = []
    for name, source in sources.items():
        path = PACKAGE / MODULES[name]
        module = formatted(blocking(source, name), path)
        if not check:
            path.write_text(module)
        elif not path.exists() or path.read_text() != module:
            stale.append(path.name)
    for name in stale:
        print(f"{name} is not what its source generates: run `make sync`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
