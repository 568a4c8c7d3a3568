"""Shell blocks of the documentation use commands and options that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from resnet50_cli.app import app as client
from resnet50_gateway.command import app as gateway
from resnet50_server.cli.main import app as server
from tests.support.tutorials import ROOT, Block, blocks

PROGRAMS = {"resnet50": client, "resnet50-server": server, "resnet50-gateway": gateway}
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SHELL = {"sh", "bash", "console"}
# Ends a command within a line.
ENDS = re.compile(r"\|\|?|&&?|;|\d?>+.*")


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of the project in a shell block."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    for line in text.splitlines():
        words = shlex.split(line.removeprefix("$ ").strip(), comments=True)
        while words:
            end = next((at for at, word in enumerate(words) if ENDS.fullmatch(word)), len(words))
            command, words = words[:end], words[end + 1 :]
            while command and re.fullmatch(r"[A-Z0-9_]+=.*", command[0]):
                command = command[1:]
            if command and Path(command[0]).name in PROGRAMS:
                yield [Path(command[0]).name, *command[1:]]


def problems(words: list[str]) -> Iterator[str]:
    """Yield the options, and the subcommand, that a command does not have."""
    command: Any = typer.main.get_command(PROGRAMS[words[0]])
    options = {"--help"}
    for word in words[1:]:
        if word == "--":  # of `ray deploy`: options of `serve` follow
            program: Any = typer.main.get_command(server)
            command, options = program.commands["serve"], set()
            continue
        known = getattr(command, "commands", {})
        if word in known:
            command = known[word]
        elif known and not word.startswith("-") and re.fullmatch(r"[a-z]+", word):
            if not getattr(command, "invoke_without_command", False):
                yield f"{words[0]} has no command {word!r}"
            return
        options |= {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        name = word.partition("=")[0]
        if re.fullmatch(r"--?[A-Za-z][\w-]*", name) and name not in options:
            yield f"{' '.join(words[:3])} … has no option {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_page_exist(page):
    wrong = [
        f"{block}: {problem}"
        for block in blocks(page)
        if block.language in SHELL
        for words in commands(block)
        for problem in problems(words)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        *("resnet50 clasify a.jpg", "resnet50 classify --topk 3 a.jpg"),
        *("A=1 resnet50-server serve --x", "resnet50-server ray deploy -- --x"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line):
    block = Block(Path("page.md"), 1, "sh", f"true && {line}\n", None, None)
    (words,) = commands(block)
    assert list(problems(words))
