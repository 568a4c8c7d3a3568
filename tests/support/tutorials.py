"""Pages of docs/tutorials, run as a reader runs them: block by block, in one folder.

The language of a block, and the comment before it, decide:

* `sh` is run by bash. A block that begins with `resnet50-server serve` is left running, until the
  next one or the end of the page.
* `text` is the output of the block before it, compared by `assert_shows`.
* A block with `title="NAME"` is written to the file NAME.
* `<!-- not run: REASON -->` before a `sh` block: only its syntax is checked.

Servers and commands use a free port instead of 50051.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The port of the pages; each run has a free one in its place.
PORT = "50051"
SERVES = "resnet50-server serve"
# A loaded machine takes longer than a reader's.
TIMEOUT_S = 600.0

# Settings of the processes that run tests which pages are run with, too.
OF_THE_MACHINE = ("RESNET50_GRAPH_CACHE_DIR", "RESNET50_ENGINE_THREADS")

_FENCE = re.compile(r"^ *```(\w*)(?: title=\"([^\"]+)\")?$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
_UNIT = re.compile(r" ?(?:ms|s|kB|MB|MiB|GB|images/s|frames/s)\b")
_TOKEN = re.compile(
    r"(?P<any>\w*…)"
    r"|(?P<digest>\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b)"
    r"|(?P<number>\d+(?:,\d{3})*(?:\.\d+)?)"
    r"|(?P<space>[ \t]+)"
    r"|(?P<rule>─+)"
    r"|(?P<text>.)"
)
_NUMBER = r"(\d+(?:,\d{3})*(?:\.\d+)?)"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Path of the page.
        line: Its first line, from 1.
        language: Of the fence: sh, text, python, yaml …
        text: The content, ending in a newline.
        title: File that it is written to; None for none.
        not_run: Why it is not run; None if it is.
    """

    page: Path
    line: int
    language: str
    text: str
    title: str | None
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    found: list[Block] = []
    not_run, opened, content = None, None, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if opened is not None:
            if line.strip() == "```":
                at, language, title, indent = opened
                text = "".join(one[indent:] + "\n" for one in content)
                found.append(Block(page, at + 1, language, text, title, not_run))
                opened, content, not_run = None, [], None
            else:
                content.append(line)
        elif match := _FENCE.match(line):
            opened = number, match[1], match[2], len(line) - len(line.lstrip())
        elif line.strip():
            marker = _NOT_RUN.match(line)
            not_run = marker[1] if marker else None
    assert opened is None, f"{page}: the last block has no end"
    return found


def assert_shows(shown: str, printed: str) -> None:
    """Assert that a page shows the output of a command.

    `…` on a page is any text, on a line of its own any lines. Numbers with a unit of time, memory
    or speed are not compared, nor are digests. Others may differ by 2%: percentages by 2 points,
    decimals by 0.02.
    """
    pattern, numbers = _pattern(shown.strip())
    lines = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    found = re.fullmatch(pattern, lines)
    both = f"\n--- the page shows:\n{shown}\n--- the command printed:\n{printed}"
    assert found is not None, both
    for (expected, percent), text in zip(numbers, found.groups(), strict=True):
        value = float(expected.replace(",", ""))
        allowed = max(0.02 * value, 2.0 if percent else 0.02 if "." in expected else 0.0)
        different = abs(float(text.replace(",", "")) - value)
        assert different <= allowed, f"{text} instead of {expected}{both}"


def _pattern(shown: str) -> tuple[str, list[tuple[str, bool]]]:
    """Return a regular expression, and its groups: number and whether it is a percentage."""
    numbers: list[tuple[str, bool]] = []
    parts = []
    for line in shown.splitlines():
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
            continue
        for token in _TOKEN.finditer(line.rstrip()):
            rest = line[token.end() :]
            if token["any"]:
                parts.append(".*?")
            elif token["digest"]:
                parts.append(r"[0-9a-f]+")
            elif token["number"] and _UNIT.match(rest):
                parts.append(r"[\d.,]+")
            elif token["number"]:
                parts.append(_NUMBER)
                numbers.append((token["number"], rest.startswith("%")))
            elif token["rule"]:
                parts.append("─+")  # as wide as its table
            else:
                parts.append(r"[ \t]+" if token["space"] else re.escape(token[0]))
        parts.append(r"\n")
    if parts and parts[-1] == r"\n":
        parts.pop()
    elif parts:  # ends with any lines
        parts[-1] = r"(?s:.*)"
    return "".join(parts), numbers


class TutorialRun:
    """A page that is being run.

    Args:
        folder: Where its commands run.
        done: Output of blocks that have been run already, by their content; their files are in
            the folder.
    """

    def __init__(self, folder: Path, done: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._done = done or {}
        self._port = str(free_port())
        self._environment = _environment(folder.parent / "commands") | {
            "RESNET50_LISTEN": f"127.0.0.1:{self._port}",
            "RESNET50_SERVER": f"localhost:{self._port}",
        }
        self._server: _Server | None = None
        self.printed: str | None = None

    def run(self, block: Block) -> None:
        """Run a block, write its file, or compare the output of the one before it."""
        text = block.text.replace(PORT, self._port)
        if block.title is not None:
            path = self._folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif block.language == "text":
            assert self.printed is not None, f"{block}: no command is before it"
            self._compare(block)
        elif block.not_run is not None:
            check_syntax(block)
            self.printed = None
        elif block.text in self._done:
            self.printed = self._done[block.text]
        elif text.startswith(SERVES):
            self.stop()
            self._server = _Server(text, self._folder, self._environment)
            self.printed = ""
        else:
            assert block.language == "sh", f"{block}: a block of {block.language!r} has no title"
            self.printed = self._shell(block, text)

    def _shell(self, block: Block, text: str) -> str:
        ended = subprocess.run(
            ["bash", "-eu", "-c", text],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert ended.returncode == 0, f"{block}: status {ended.returncode}\n{ended.stdout}"
        return ended.stdout

    def _compare(self, block: Block) -> None:
        assert self.printed is not None
        if self._server is not None and self.printed == "":
            last = block.text.strip().splitlines()[-1].replace(PORT, self._port)
            self.printed = self._server.wait_for(last)
        try:
            assert_shows(block.text, self.printed.replace(self._port, PORT))
        except AssertionError as error:
            raise AssertionError(f"{block}: {error}") from None

    def stop(self) -> None:
        """Stop the page's server as Ctrl-C does; it has to end with status 0."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()


class _Server:
    """The server of a page, and its output."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, last: str) -> str:
        """Return all lines up to the one that the page shows as the last."""

        def is_there() -> bool:
            return last + "\n" in self._lines or self._ended

        with self._changed:
            there = self._changed.wait_for(is_there, TIMEOUT_S)
            lines = list(self._lines)
        assert there and last + "\n" in lines, f"{last!r} is not printed:\n{''.join(lines)}"
        return "".join(lines[: lines.index(last + "\n") + 1])

    def stop(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGINT)
            status = self._process.wait(60)
        except ProcessLookupError:
            status = self._process.wait()
        finally:
            self._process.kill()
            self._reader.join(60)
        assert status == 0, f"the server ended with status {status}:\n{''.join(self._lines)}"


@contextmanager
def tutorial_run(folder: Path, done: Mapping[str, str] | None = None) -> Iterator[TutorialRun]:
    """Run a page in a folder, which has the checkout's `examples`; stop its server at the end."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=ignored)
    run = TutorialRun(folder, done)
    try:
        yield run
    finally:
        run.stop()


def check_syntax(block: Block) -> None:
    """Assert that a shell block parses, and that each `pip install` names extras that exist."""
    assert block.language == "sh", f"{block}: only shell blocks may be left out"
    parsed = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True)
    assert parsed.returncode == 0, f"{block}: {parsed.stderr}"
    wanted = {
        name for names in re.findall(r"'\.\[([\w,-]+)\]'", block.text) for name in names.split(",")
    }
    known = set(re.findall(r"^(\w+) = \[$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert wanted <= known, f"{block}: no extra is called {sorted(wanted - known)}"


def _environment(commands: Path) -> dict[str, str]:
    """Return the environment of a reader who has activated the virtual environment."""
    commands.mkdir()
    for name, module in (
        ("python", ""),
        ("resnet50", "-m resnet50_cli"),
        ("resnet50-server", "-m resnet50_server"),
    ):
        path = commands / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        path.chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RESNET50_") or name in OF_THE_MACHINE
    }
    search_path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": search_path, "COLUMNS": "120", "TERM": "dumb", "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
