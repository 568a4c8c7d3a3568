"""The commands of README.md run as printed, and print the output that it shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.administering import ADMIN, describe, tokens_file
from tests.support.clips import picture_frame, write_clip
from tests.support.evaluations import image_folder
from tests.support.pictures import encode, photo_like
from tests.support.serving import server_processes
from tests.support.tutorials import OF_THE_MACHINE, assert_shows, free_port

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text()
# A loaded machine takes longer than a reader's.
TIMEOUT_S = 300.0
# Nothing listens on it: weights cannot be downloaded, and the demo serves the digits everywhere.
NO_PROXY = "http://127.0.0.1:9"


def blocks(title: str, language: str) -> list[str]:
    """Return the code blocks of a section in one language."""
    section = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def commands(block: str) -> list[str]:
    return [line.partition("#")[0].strip() for line in block.splitlines()]


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a command to its end; return its standard output."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def outer_environment() -> dict[str, str]:
    """Return this process's environment without settings of make, the Makefile and the project."""
    ours = re.compile(r"MAKE|MFLAGS|(VENV|PYTHON|TORCH|JOBS)$|RESNET50_")
    return {
        name: value
        for name, value in os.environ.items()
        if name in OF_THE_MACHINE or not ours.match(name)
    }


@pytest.fixture
def checkout(built, tmp_path) -> Path:
    """Return a checkout with the packages of this environment and the digits of `make demo`."""
    folder = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for path in listed:
        if (ROOT / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "digits").symlink_to(built[0])
    venv = folder / ".venv"
    venv.mkdir()
    for entry in Path(sys.prefix).iterdir():
        (venv / entry.name).symlink_to(entry)
    # `make demo` installs nothing after this.
    (venv / "demo").unlink(missing_ok=True)
    (venv / "demo").touch()
    return folder


@contextmanager
def left_running(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a command until the end of the block, which begins once its server listens."""
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("listening on "):
                    break
            else:
                raise AssertionError("".join(lines) + (folder / "log").read_text())
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=TIMEOUT_S)


@pytest.mark.timeout(900)
def test_quickstart_prints_what_the_readme_shows(checkout, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    environment = outer_environment() | {
        "https_proxy": NO_PROXY,
        "TORCH_HOME": str(tmp_path / "torch"),
        "RESNET50_ENGINE": "torch",  # the only one that `make demo` installs
        "RESNET50_LISTEN": address,
        "RESNET50_SERVER": address,
    }
    first, second = blocks("Quickstart", "sh")
    demo, serve = commands(first)
    (table,) = blocks("Quickstart", "text")
    assert_shows(table, run(demo, checkout, environment))
    with left_running(serve, checkout, environment):
        prompt, shown = second.splitlines()
        assert_shows(shown, run(prompt.removeprefix("$ "), checkout, environment))


def test_readme_is_short_enough_to_read():
    assert len(README.splitlines()) <= 150


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder with the files that the section on the command line names."""
    photo = encode(photo_like(64, 48), "JPEG")
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "photos/one.jpg", "photos/two.jpg"):
        (tmp_path / name).write_bytes(photo)
    image_folder(tmp_path / "val", tench=2, goldfish=1)
    frames = [picture_frame(photo_like(64, 48)) for _ in range(5)]
    write_clip(tmp_path / "clip.mp4", frames, codec="mpeg4")
    return tmp_path


def test_commands_of_the_section_on_the_command_line_run(folder):
    (block,) = blocks("Command line", "sh")
    describe(folder / "variants" / "digits")
    with server_processes() as start:
        server = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null"),
            *("--variants-dir", str(folder / "variants")),
            *("--tokens-file", str(tokens_file(folder))),
        )
        environment = outer_environment() | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RESNET50_SERVER": server.wait_until_listening(),
            "RESNET50_TOKEN": ADMIN,
            "RESNET50_ENGINE": "null",  # `embed --local`; no weights here
        }
        for command in commands(block):
            # The loads of a sweep take 10 s each.
            shorter = " --duration-s 0.5 --warm-up-s 0" if " bench " in command else ""
            run(command + shorter, folder, environment)
    for output in ("vectors.parquet", "vectors.lance", "answers.csv", "report.html"):
        assert (folder / output).stat().st_size > 0
