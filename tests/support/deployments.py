"""The files that deploy the server, read as what runs them reads them."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from resnet50_server.cli.flags import FLAGS
from resnet50_server.settings import ENV_PREFIX, Settings, unknown_environment

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


def settings_of(
    arguments: Sequence[str], environment: Mapping[str, str], patch: pytest.MonkeyPatch
) -> Settings:
    """Return what a server is told by its arguments (after `serve`) and its environment."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)
    assert unknown_environment() == []
    found: list[Settings] = []

    @FLAGS.declare
    def serve(**flags: Any) -> None:
        found.append(FLAGS.read(flags))

    app = typer.Typer()
    app.command()(serve)
    app(list(arguments), standalone_mode=False)
    (settings,) = found
    return settings


def documents(path: Path) -> list[Any]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one is not None]


def manifests() -> dict[str, dict[str, Any]]:
    """Return the objects of Kubernetes by kind; none occurs twice."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in documents(path):
            assert document["kind"] not in found
            found[document["kind"]] = document
    return found


def pods() -> dict[str, dict[str, Any]]:
    """Return the pod templates of Kubernetes by the kind of object that has them."""
    return {
        kind: document["spec"]["template"]
        for kind, document in manifests().items()
        if "template" in document.get("spec", {})
    }


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    """Return a container's environment; each value has to be a string, or Kubernetes refuses it."""
    assert all(isinstance(one["value"], str) for one in container["env"])
    return {one["name"]: one["value"] for one in container["env"]}


class Dockerfile:
    """A target of the Dockerfile, with the stages that it is built on.

    Args:
        target: Name of a stage.

    Attributes:
        environment: Variables that ENV sets.
        ports: Ports of EXPOSE.
        command: ENTRYPOINT with CMD.
        entrypoint: ENTRYPOINT alone.
        check: The command of HEALTHCHECK.
        run: All that RUN runs.
        copied: Paths that any stage copies from the repository.
        stages: Names of all stages in their order.
        user: User that runs it.
    """

    def __init__(self, target: str = "cpu") -> None:
        lines = (ROOT / "Dockerfile").read_text().splitlines()
        text = "\n".join(line for line in lines if not line.startswith("#"))
        stages: dict[str, list[tuple[str, str]]] = {}
        parents: dict[str, str] = {}
        self.copied: list[str] = []
        for line in text.replace("\\\n", " ").splitlines():
            name, _, rest = line.partition(" ")
            if name == "FROM":
                image, _, stage = rest.partition(" AS ")
                parents[stage], stages[stage] = image, []
            elif name:
                stages[stage].append((name, rest.strip()))
                if name == "COPY" and not rest.startswith("--from"):
                    self.copied += rest.split()[:-1]
        self.stages = list(stages)
        found: dict[str, list[str]] = {}
        while target in stages:
            for name, rest in reversed(stages[target]):
                found.setdefault(name, []).insert(0, rest)
            target = parents[target]
        self.environment = dict(
            word.split("=", 1) for rest in found["ENV"] for word in shlex.split(rest)
        )
        self.ports = {int(port) for port in " ".join(found["EXPOSE"]).split()}
        self.entrypoint: list[str] = json.loads(found["ENTRYPOINT"][-1])
        self.command: list[str] = self.entrypoint + json.loads(found["CMD"][-1])
        _, _, check = found["HEALTHCHECK"][-1].partition(" CMD ")
        self.check: list[str] = json.loads(check)
        self.run = "\n".join(found["RUN"])
        self.user = found["USER"][-1]
        (self.volume,) = found["VOLUME"]

    def locks(self) -> list[Path]:
        """Return the lock files that it installs, in their order."""
        names = re.findall(r"--requirement /lock/([\w-]+\.txt)", self.run)
        return [DEPLOY / "lock" / name for name in names]


def locked(path: Path) -> dict[str, str]:
    """Return the version of each package in a lock file, by its normalised name."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(), re.MULTILINE)
    return {normalized(name): version for name, version in found}


def normalized(name: str) -> str:
    """Return the name of a distribution as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unit() -> dict[str, list[str]]:
    """Return the [Service] section of the systemd unit: each key's values in order."""
    section, found = "", {}
    for line in (DEPLOY / "resnet50-server.service").read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(key, []).append(value)
    return found


def seconds(duration: str) -> float:
    """Return the length of "45s", "2m" or "45"."""
    found = re.fullmatch(r"(\d+)(s|m|h)?", duration)
    assert found is not None, duration
    return float(found[1]) * {None: 1, "s": 1, "m": 60, "h": 3600}[found[2]]
