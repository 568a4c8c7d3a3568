"""Forked commands are told apart from commands of a new interpreter by their speed alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support import processes


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["--help"], ["no-such-command"]])
@pytest.mark.parametrize("program", ["resnet50-server", "resnet50-gateway", "resnet50"])
def test_fork_says_and_returns_what_a_new_interpreter_does(program, arguments):
    new = subprocess.run(
        [sys.executable, "-m", processes.MODULES[program], *arguments],
        capture_output=True,
        text=True,
    )
    forked = processes.run(program, *arguments)

    def told(done: subprocess.CompletedProcess[str]) -> tuple[int, list[str]]:
        # A module that is run names itself so in its usage errors.
        text = done.stdout + done.stderr
        text = text.replace(f"python -m {processes.MODULES[program]}", program)
        return done.returncode, text.split()

    assert told(forked) == told(new)


def test_fork_gets_environment_stdin_and_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = "tests.unit.support.test_processes:echo"
    environment = {"SAID": "something", "PATH": os.environ["PATH"]}
    done = processes.run("resnet50", "a", 1, environment=environment, input="text", entry=entry)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.splitlines() == ["a 1", "something", "text", str(tmp_path), "False"]


def echo() -> None:
    """Runs in the fork."""
    print(*sys.argv[1:])
    print(os.environ["SAID"])
    print(sys.stdin.read())
    print(os.getcwd())
    print("torch" in sys.modules)
    sys.exit(7)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_signal_that_ends_a_fork_is_its_status(number):
    with processes.start("resnet50", entry="signal:pause") as process:
        process.send_signal(number)
        assert process.wait(60) == -number


def test_timeout_names_the_command():
    with processes.start("resnet50", entry="signal:pause") as process:
        with pytest.raises(subprocess.TimeoutExpired, match="resnet50"):
            process.communicate(timeout=0.01)
        process.kill()
