"""Containers, started by the `docker run` commands of docs/how-to/deploy.md."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence

from tests.support.deployments import ROOT, Dockerfile
from tests.support.tutorials import blocks

from .engine import podman

PAGE = ROOT / "docs" / "how-to" / "deploy.md"
# Options that the page names in sentences.
READ_ONLY, OTHER_USER = "--read-only --tmpfs /tmp:exec -e HOME=/tmp", "--user 1234:0"
STOP = "docker stop -t 45"
# Random weights need no download; the page has official ones.
VARIANTS = "RESNET50_VARIANTS=x=random:0"
HEALTHY_S = 600.0


def commands() -> list[list[str]]:
    """Return the words of the page's `docker run` commands, in their order."""
    text = "\n".join(block.text for block in blocks(PAGE)).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("docker run ")]


def phrase(words: str) -> list[str]:
    """Return the words of options that the page names in a sentence.

    Raises:
        ValueError: It does not: the trial has to change with the page.
    """
    if f"`{words}`" not in PAGE.read_text():
        raise ValueError(f"{PAGE.name} does not have `{words}`")
    return words.split()


class Container:
    """A started container, by its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def log(self) -> str:
        """Its stdout and stderr so far."""
        done = subprocess.run(
            ["podman", "logs", self._name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout

    def inspected(self) -> dict[str, object]:
        """Return its state: Status, ExitCode, …"""
        (found,) = json.loads(podman("inspect", self._name))
        return dict(found["State"])

    def wait_until_healthy(self) -> None:
        """Run the command of HEALTHCHECK until it succeeds, each time as long as it takes.

        Raises:
            AssertionError: The container has ended, or is not healthy in time; has its log.
        """
        limit = time.monotonic() + HEALTHY_S
        check = ["podman", "exec", self._name, *Dockerfile().check]
        while subprocess.run(check, capture_output=True).returncode != 0:
            state = self.inspected()
            assert state["Status"] == "running", f"{state}\n{self.log}"
            assert time.monotonic() < limit, self.log
            time.sleep(0.5)

    def run(self, *command: str) -> str:
        """Return stdout and stderr of a command within it."""
        done = subprocess.run(
            ["podman", "exec", self._name, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout.strip()

    def stop(self) -> int:
        """Stop it as the page says, and return the exit code."""
        *options, name = [*phrase(STOP)[1:], self._name]
        podman(*options, name)
        return int(str(self.inspected()["ExitCode"]))

    def wait(self) -> int:
        """Return the exit code when it has ended."""
        return int(podman("wait", self._name))


@contextlib.contextmanager
def started(
    command: Sequence[str],
    tag: str,
    options: Sequence[str] = (),
    replaced: Mapping[str, str] | None = None,
) -> Iterator[Container]:
    """Run a container in the background for the length of the block.

    Args:
        command: Of the page.
        tag: Image instead of the page's.
        options: More of them.
        replaced: New texts by the texts of the command that they replace.
    """
    words = [word for word in command if word not in ("docker", "run", "--rm", "resnet50-serving")]
    words = [re.sub("^RESNET50_VARIANTS=.*", VARIANTS, word) for word in words]
    for old, new in (replaced or {}).items():
        words = [word.replace(old, new) for word in words]
    name = f"trial-{time.monotonic_ns()}"
    # No name server is reached from here: one that refuses at once, or lookups would wait for it.
    ours = ["--detach", "--name", name, "--pull=never", "--dns=127.0.0.1"]
    podman("run", *ours, *words, *options, tag)
    try:
        yield Container(name)
    finally:
        podman("rm", "--force", "--time=0", name)
