"""`resnet50 top` as people and scripts use it: a real process, and a terminal of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from tests.support import processes
from tests.support.exporting import Exported, exporting

COMMAND = [sys.executable, "-m", "resnet50_cli", "top"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if "RESNET50" not in key}
QUICK = ("--interval-s", "0.2")


@pytest.fixture(scope="module")
def metrics() -> Iterator[str]:
    exported = Exported()
    exported.load("digits", default=True)
    with exporting(exported) as address:
        yield address


@pytest.fixture(scope="module")
def unreachable() -> str:
    with exporting(Exported()) as address:
        return address


def top(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return processes.run("resnet50", "top", *arguments, environment=ENVIRONMENT | environment)


def test_once_prints_one_snapshot_into_a_pipe(metrics):
    done = top("--once", *QUICK, "--metrics", metrics)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("resnet50 top") == 1
    assert "READY  version 0.1.0" in done.stdout
    assert "\x1b" not in done.stdout


def test_once_json_is_one_object_with_rates(metrics, unreachable):
    done = top("--once", "--json", *QUICK, "--metrics", metrics, "--metrics", unreachable)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert [one["name"] for one in found["servers"]] == [metrics, unreachable]
    assert "refused" in found["servers"][1]["failure"]
    assert found["total"]["images_per_s"] == 0.0
    assert [one["name"] for one in found["total"]["variants"]] == ["digits"]


def test_servers_may_come_from_the_environment(metrics):
    done = top("--once", "--json", *QUICK, RESNET50_METRICS=f"{metrics},http://{metrics}/other")
    assert len(json.loads(done.stdout)["servers"]) == 2


def test_once_without_any_server_fails_for_scripts(unreachable):
    done = top("--once", *QUICK, "--metrics", unreachable)
    assert (done.returncode, "connection refused" in done.stderr) == (3, True)
    assert "DOWN" in done.stdout
    as_json = top("--once", "--json", *QUICK, "--metrics", unreachable)
    assert (as_json.returncode, json.loads(as_json.stdout)["total"]) == (3, None)


@pytest.mark.parametrize("arguments", [("--metrics", "gpu-1"), ("--server", "")])
def test_wrong_addresses_are_wrong_usage(arguments):
    done = top("--once", *arguments)
    assert (done.returncode, arguments[0][2:] in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_states_of_variants_come_from_the_servers_themselves(metrics, null_address):
    # One that does not answer is no fault here.
    both = ("--server", "127.0.0.1:1", "--server", null_address)
    done = top("--once", "--json", *QUICK, "--metrics", metrics, *both)
    ((name, status),) = json.loads(done.stdout)["variant_status"].items()
    assert (name, status["state"], status["trained"]) == ("IMAGENET1K_V2", "ready", False)
    assert status["acc_at_1"] == pytest.approx(80.858)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_json_goes_on_until_it_is_interrupted(metrics, how):
    command = ("resnet50", "top", "--json", *QUICK, "--metrics", metrics)
    with processes.start(*command, environment=ENVIRONMENT) as running:
        first, second = (json.loads(running.stdout.readline())["total"] for _ in range(2))
        running.send_signal(how)
        _, errors = running.communicate(timeout=60)
    assert (first["images_per_s"], second["images_per_s"]) == (None, 0.0)
    assert (running.returncode, errors) == (0, "")


def test_a_reader_that_has_enough_is_no_error(metrics):
    command = ("resnet50", "top", *QUICK, "--metrics", metrics)
    with processes.start(*command, environment=ENVIRONMENT) as running:
        assert running.stdout.readline().startswith("resnet50 top")
        running.stdout.close()
        assert running.wait(timeout=60) == 0
        assert running.stderr.read() == ""


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.ours, self._theirs = pty.openpty()
        self.before = termios.tcgetattr(self._theirs)
        self.text = ""
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
            start_new_session=True,
        )

    def read_until(self, wanted: str) -> None:
        while wanted not in self.text:
            ready, _, _ = select.select([self.ours], [], [], 60)
            assert ready, self.text
            self.text += os.read(self.ours, 65536).decode(errors="replace")

    def settings(self) -> list:
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)


@pytest.fixture
def on_a_terminal(metrics) -> Iterator[Terminal]:
    with contextlib.closing(Terminal(*QUICK, "--metrics", metrics)) as terminal:
        terminal.read_until("READY")
        yield terminal


def ends_well(terminal: Terminal) -> None:
    terminal.read_until("\x1b[?1049l")  # the screen that was there before
    assert terminal.process.wait(timeout=60) == 0
    assert "\x1b[?25h" in terminal.text  # the cursor
    assert terminal.settings() == terminal.before
    assert "Traceback" not in terminal.text


def test_q_ends_it_and_gives_the_terminal_back(on_a_terminal):
    assert on_a_terminal.settings() != on_a_terminal.before
    assert "\x1b[?1049h" in on_a_terminal.text
    os.write(on_a_terminal.ours, b"q")
    ends_well(on_a_terminal)


def test_nothing_that_is_exported_steers_the_terminal():
    evil = "\x1b]0;title\x07\x9b2J\u202egnp[blink]"
    exported = Exported(version=evil)
    exported.load(evil, default=True, digest=evil)
    with (
        exporting(exported) as address,
        contextlib.closing(Terminal(*QUICK, "--metrics", address)) as terminal,
    ):
        terminal.read_until("READY")
        terminal.read_until("VARIANT")
        terminal.read_until(r"\x1b]0;title\x07\x9b2J\u202egnp[blink]")
        os.write(terminal.ours, b"q")
        ends_well(terminal)
    # rich styles its lines itself, by CSI sequences only.
    assert not [
        one for one in ("\x1b]", "\x07", "\x9b", "\u202e", "\x1b[5m") if one in terminal.text
    ]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_and_give_the_terminal_back(on_a_terminal, how):
    on_a_terminal.process.send_signal(how)
    ends_well(on_a_terminal)


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(on_a_terminal):
    on_a_terminal.process.send_signal(signal.SIGTSTP)
    on_a_terminal.read_until("\x1b[?1049l")
    _, status = os.waitpid(on_a_terminal.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert on_a_terminal.settings() == on_a_terminal.before
    on_a_terminal.text = ""
    on_a_terminal.process.send_signal(signal.SIGCONT)
    on_a_terminal.read_until("READY")
    os.write(on_a_terminal.ours, b"q")
    ends_well(on_a_terminal)


def test_help_names_environment_defaults_and_exit_codes():
    done = top("--help")
    for wanted in ("RESNET50_METRICS", "9464", "Exit codes"):
        assert wanted in done.stdout
