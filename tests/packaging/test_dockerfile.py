"""The image starts what `make serve` starts, with all that this needs, and with nothing else."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.e2e.image.containers import OTHER_USER, READ_ONLY, STOP, commands, phrase
from tests.support.deployments import ROOT, Dockerfile, locked, normalized

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = ("cuda", "cpu")
OURS = {
    *("resnet50", "resnet50_server", "resnet50_gateway", "resnet50_settings"),
    *("resnet50_client", "resnet50_cli", "resnet50_bench", "resnet50_metrics", "resnet50_bulk"),
}
SERVER = ROOT / "server"
# Offline work and servers on Ray need extras of their own, which no image has.
WITH_EXTRAS = {SERVER / "resnet50_server" / name for name in ("offline", "ray")}
# Modules that the image's health check loads.
HEALTH_CHECK = """
import contextlib, sys
from resnet50_cli.__main__ import main
with contextlib.suppress(SystemExit):
    main()
print("loaded", *{name.partition(".")[0] for name in list(sys.modules)})
"""


def test_image_runs_the_command_of_make_serve(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr("choice.choose_variant", lambda: ("x", "x=random:0"))
    monkeypatch.setattr(sys, "argv", ["serve.py"])
    runpy.run_path(str(ROOT / "examples" / "serve.py"), run_name="__main__")
    ((_, *python, verb, option, _),) = started
    image = Dockerfile()
    # `python -m resnet50_server` is what the installed command runs.
    assert python == ["-m", "resnet50_server"]
    scripts = PROJECT["project"]["scripts"]
    assert scripts[image.entrypoint[0]] == "resnet50_server.__main__:main"
    # The image's user sets the variants by the environment instead of the option.
    assert (image.command[1:], option) == ([verb], "--variants")
    assert "RESNET50_VARIANTS" not in image.environment
    assert scripts[image.check[0]] == "resnet50_cli.__main__:main"


@pytest.mark.parametrize("target", TARGETS)
def test_image_has_what_the_server_and_its_health_check_import(target):
    image = Dockerfile(target)
    installed = {name for path in image.locks() for name in locked(path)}
    sources = [one for one in SERVER.rglob("*.py") if WITH_EXTRAS.isdisjoint(one.parents)]
    names = {name for source in sources for name in _imports(source)}
    names |= _loaded_by(image.check)
    found = packages_distributions()
    missing = {
        name
        for name in (names & set(found)) - OURS
        if not {normalized(one) for one in found[name]} & installed
    }
    assert not missing, f"{missing}: add their extra to deploy/lock.py and run `make lock`"


def _loaded_by(check: list[str]) -> set[str]:
    """Return the packages that the health check has loaded when it is done."""
    arguments = [*check[1:], "--server", "127.0.0.1:1"]
    done = subprocess.run(
        [sys.executable, "-c", HEALTH_CHECK, *arguments], capture_output=True, text=True
    )
    words = done.stdout.splitlines()[-1].split()
    assert words[0] == "loaded", done.stderr
    assert "resnet50_client" in words
    return set(words[1:])


def _imports(source: Path) -> Iterator[str]:
    """Give the packages that a module cannot do without, imported in functions too."""
    tree = ast.parse(source.read_text())
    optional = {
        id(node)
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try)
        and any("ImportError" in ast.dump(one) for one in attempt.handlers)
        for statement in attempt.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in optional:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_sources_and_lock_files_are_copied_and_not_ignored():
    project = PROJECT["project"]
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], "deploy/lock"}
    needed |= {path.split("/")[0] for path in packages}
    assert set(Dockerfile().copied) == needed
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == needed


def test_cpu_is_the_default_target_beside_cuda():
    *_, cuda, cpu = Dockerfile().stages
    assert (cuda, cpu) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_image_installs_only_what_is_locked_and_its_own_wheel(target):
    image = Dockerfile(target)
    installs = re.findall(r"pip install (.*?)(?: && |$)", image.run, re.MULTILINE)
    assert all("--no-deps" in one for one in installs)
    own = [one.split()[-1] for one in installs if "--requirement" not in one]
    assert own == ["/wheels/*.whl"]
    assert [path.name for path in image.locks()] == ["server.txt", f"torch-{target}.txt"]
    assert "pip check" in image.run  # nothing is missing from the lock files


@pytest.mark.parametrize("target", TARGETS)
def test_image_is_not_root_and_caches_in_its_volume(target):
    image = Dockerfile(target)
    assert image.user.isdecimal() and int(image.user) > 0
    assert image.volume == image.environment["TORCH_HOME"]
    caches = [value for name, value in image.environment.items() if name.endswith("CACHE_DIR")]
    assert len(caches) == (3 if target == "cuda" else 1)
    assert all(value.startswith(image.volume + "/") for value in caches)
    assert f"--uid {image.user} " in image.run


def test_cuda_image_has_a_compiler_for_torch_compile():
    assert "gcc libc6-dev" in Dockerfile("cuda").run
    assert "gcc" not in Dockerfile("cpu").run


@pytest.mark.parametrize("name", ["NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"])
def test_image_says_what_it_wants_of_a_gpu(name):
    assert Dockerfile("cuda").environment[name]


def test_page_has_the_commands_and_options_that_make_image_runs():
    plaintext, tls = commands()
    assert "RESNET50_ALLOW_PLAINTEXT=true" in plaintext
    assert {"RESNET50_TLS_CERT=/tls/tls.crt", "/etc/resnet50:/tls:ro"} <= set(tls)
    assert plaintext[-1] == tls[-1] == "resnet50-serving"
    for words in (READ_ONLY, OTHER_USER, STOP):
        assert phrase(words)
