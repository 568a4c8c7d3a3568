"""The command line without the packages of its extras, and without loading them unasked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.commands import environment
from tests.support.puppet_server import Puppet, puppet_server

EXTRAS = {"PIL", "av", "jinja2", "matplotlib", "prometheus_client", "psutil", "pyarrow"}


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment() | variables,
        timeout=120,
    )


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command where a module cannot be imported."""
    script = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = {['resnet50', *arguments]!r};"
        "from resnet50_cli.__main__ import main; main()"
    )
    return python("-c", script)


def imported(*arguments: str) -> set[str]:
    """Return the names of all modules that a command has imported at its end."""
    script = (
        f"import sys; sys.argv = {['resnet50', *arguments]!r}\n"
        "from resnet50_cli.__main__ import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        (
            "typer",
            ["health"],
            "resnet50 needs typer: install resnet50-serving with the extra [cli]",
        ),
        ("rich", ["health"], "resnet50 needs rich: install resnet50-serving with the extra [cli]"),
        (
            "filelock",
            ["embed", "a.jpg", "--out", "a.npz"],
            "resnet50 needs filelock: install resnet50-serving with the extra [cli]",
        ),
        (
            "prometheus_client",
            ["top", "--once"],
            "resnet50 top needs prometheus-client: install resnet50-serving with the extra [top]",
        ),
        (
            "matplotlib",
            ["bench", "--html", "report.html"],
            "resnet50 bench needs matplotlib: install resnet50-serving with the extra [bench]",
        ),
        (
            "psutil",
            ["bench"],
            "resnet50 bench needs psutil: install resnet50-serving with the extra [bench]",
        ),
        (
            "PIL",
            ["bench"],
            "resnet50 bench needs pillow: install resnet50-serving with the extra [bench]",
        ),
        (
            "jinja2",
            ["evaluate", ".", "--html", "report.html"],
            "resnet50 evaluate needs jinja2: install resnet50-serving with the extra [cli]",
        ),
    ],
)
def test_a_missing_package_is_one_sentence(module, arguments, sentence):
    done = without(module, *arguments)
    assert (done.returncode, done.stderr, done.stdout) == (2, f"{sentence}\n", "")


@pytest.mark.parametrize("module", ["typer", "pydantic", "grpc_health", "prometheus_client"])
def test_server_without_a_package_is_one_sentence(module):
    script = (
        f"import sys; sys.modules[{module!r}] = None;"
        "sys.argv = ['resnet50-server', 'serve', '--variants', 'x=random:0', '--engine', 'null',"
        "'--listen', '127.0.0.1:0', '--metrics-listen', '127.0.0.1:0'];"
        "from resnet50_server.__main__ import main; main()"
    )
    done = python("-c", script)
    sentence = f"resnet50-server needs {module}: install resnet50-serving with the extra [server]"
    assert (done.returncode, done.stderr, done.stdout) == (2, f"{sentence}\n", "")


def test_video_without_its_extra_is_one_sentence(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    with puppet_server(Puppet("cat")) as address:
        done = without("av", "stream", str(tmp_path / "clip.mp4"), "--server", address)
    sentence = "resnet50 stream needs av: install resnet50-serving with the extra [video]"
    assert (done.returncode, done.stderr) == (2, f"{sentence}\n")


def test_help_lists_every_command_and_loads_no_extra():
    modules = imported("--help")
    assert {name.partition(".")[0] for name in modules} & EXTRAS == set()
    assert "resnet50_bench.command" in modules  # whose first line is in the list


def test_a_command_does_not_load_the_others():
    modules = imported("classify", "--help")
    assert "resnet50_cli.classify" in modules
    others = ("resnet50_bench", "resnet50_cli.top", "resnet50_cli.embed", "resnet50_cli.health")
    assert not [name for name in modules if name.startswith(others)]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("resnet50 he", ["health"]),
        ("resnet50 bench --proc", ["--processes"]),
        ("resnet50 variants un", ["unload", "unsplit"]),
        ("resnet50 stream --delivery l", ["latest"]),
    ],
)
def test_shell_completion_completes_commands_and_options(words, completed):
    variables = {
        "_RESNET50_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = python("-m", "resnet50_cli", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == completed


def test_shell_completion_can_be_installed():
    script = python(
        *("-m", "resnet50_cli", "--show-completion", "bash"),
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    assert script.returncode == 0, script.stderr
    assert "_RESNET50_COMPLETE=complete_bash" in script.stdout
    assert os.path.basename(sys.executable) not in script.stdout


def test_a_misspelt_command_is_named_with_the_right_one():
    done = python("-m", "resnet50_cli", "helth")
    assert done.returncode == 2
    assert "Did you mean 'health'?" in done.stderr
