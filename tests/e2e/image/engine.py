"""Podman with a store of its own, with an imitation of the base image."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.deployments import ROOT
from tests.support.interpreters import interpreter

PROGRAMS = {"podman": "podman", "runc": "runc", "debootstrap": "debootstrap"}
STORE = ROOT / ".cache" / "image"
# Parts of `python:3.12-slim`: a release of Debian, the packages that its Dockerfile
# installs, and the libraries with which Python's modules are linked.
RELEASE, MIRROR = "trixie", "http://deb.debian.org/debian"
PACKAGES = (
    *("ca-certificates", "netbase", "tzdata"),
    *("libbz2-1.0", "libffi8", "liblzma5", "libncursesw6", "libreadline8t64", "libsqlite3-0"),
    *("libssl3t64", "libuuid1", "zlib1g"),
)
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# Options of pip that say where packages are; no others of this machine reach the build.
INDEXES = ("index-url", "trusted-host", "proxy", "timeout", "default-timeout", "cert")
CPU_LOCK = ROOT / "deploy" / "lock" / "torch-cpu.txt"
CUDA_LOCK = ROOT / "deploy" / "lock" / "torch-cuda.txt"


def configure() -> None:
    """Let each `podman` of this process and of those that it starts use the store.

    Raises:
        SystemExit: A program is missing, or this is not root.
    """
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed: apt-get install {package}")
    if os.geteuid() != 0:
        raise SystemExit("make image: needs root, for debootstrap and for mounts")
    STORE.mkdir(parents=True, exist_ok=True)
    containers, storage = STORE / "containers.conf", STORE / "storage.conf"
    containers.write_text(
        # Lower than Podman's own, which it may not set without CAP_SYS_RESOURCE.
        '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{STORE / "storage"}"\n'
        'runroot = "/run/resnet50-image"\n'
    )
    os.environ["CONTAINERS_CONF"] = str(containers)
    os.environ["CONTAINERS_STORAGE_CONF"] = str(storage)
    os.environ["DISABLE_HC_SYSTEMD"] = "true"  # health checks are run by `podman healthcheck run`


def podman(*arguments: object) -> str:
    """Return the output of a command of Podman.

    Raises:
        RuntimeError: It failed; says why.
    """
    done = subprocess.run(["podman", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"podman {shlex.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout.strip()


def import_base() -> str:
    """Put the imitation of the Dockerfile's base image into the store; return its name."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    names = set(re.findall(r"^FROM (python:\S+)", dockerfile, re.MULTILINE))
    (name,) = names
    version = name.removeprefix("python:").removesuffix("-slim")
    reference = f"docker.io/library/{name}"
    if subprocess.run(["podman", "image", "exists", reference]).returncode != 0:
        print(f"{name}: Debian {RELEASE} by debootstrap, CPython {version} of this machine")
        root = STORE / "base"
        shutil.rmtree(root, ignore_errors=True)
        packages = f"--include={','.join(PACKAGES)}"
        command = ["debootstrap", "--variant=minbase", packages, RELEASE, str(root), MIRROR]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        _copy_python(version, root / "usr" / "local")
        steps = "ldconfig && python -m ensurepip --default-pip && apt-get clean"
        inside = ["chroot", str(root), "env", "-i", f"PATH={PATH}", "sh", "-euc", steps]
        subprocess.run(inside, check=True, stdout=subprocess.DEVNULL)
        tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        command = ["podman", "import", "--quiet", "--change", f"ENV PATH={PATH}", "-", reference]
        subprocess.run(command, stdin=tar.stdout, check=True, stdout=subprocess.DEVNULL)
        if tar.wait() != 0:
            raise RuntimeError("tar of the base image failed")
        shutil.rmtree(root)
    return reference


def build(target: str, tag: str) -> None:
    """Build a target as docs/how-to/deploy.md says, with this machine's package index.

    Raises:
        subprocess.CalledProcessError: A step failed.
    """
    files = dict(_pip_files())
    if target == "cpu" and not _reachable(CPU_LOCK):
        print("  PyTorch's index cannot be reached: torch-cpu.txt is replaced by torch-cuda.txt")
        files["/lock/torch-cpu.txt"] = CUDA_LOCK
    mounts = [f"--volume={path}:{place}:ro" for place, path in files.items()]
    # Docker's format has the health check. The network is the host's, whose indexes are reached.
    options = ["--format=docker", "--network=host", "--pull=never", "--layers", *mounts]
    command = ["podman", "build", *options, "--target", target, "-t", tag, "."]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def layer_sizes(tag: str) -> Iterator[str]:
    """Yield a line for each layer of an image that has files: MB, and the step that made it."""
    rows = json.loads(podman("history", "--format=json", "--no-trunc", tag))
    for row in reversed(rows):
        if row["size"] > 10**5:
            step = row["CreatedBy"].removeprefix("/bin/sh -c ")
            yield f"{row['size'] / 1e6:6,.0f} MB  {' '.join(step.split())[:90]}"
    total = podman("image", "inspect", "--format={{.Size}}", tag)
    yield f"{int(total) / 1e6:6,.0f} MB  in all"


def _copy_python(version: str, local: Path) -> None:
    found = interpreter(version)
    home = Path(found).resolve().parents[1] if found else Path("/usr")
    if found is None or home == Path("/usr"):
        raise SystemExit(f"CPython {version} is neither in pyenv nor in uv: uv python install")
    ignored = shutil.ignore_patterns("site-packages", "__pycache__", "test", "bin", "share")
    shutil.copytree(home, local, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    shutil.copy2(Path(found).resolve(), local / "bin" / f"python{version}")
    for name in ("python", "python3"):
        (local / "bin" / name).symlink_to(f"python{version}")


def _pip_files() -> Iterator[tuple[str, Path]]:
    """Yield files that steps of the build see, by their places: pip's configuration."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, stdout=subprocess.PIPE
    )
    options = dict(line.split("=", 1) for line in listed.stdout.decode().splitlines())
    found = {key.rpartition(".")[2]: shlex.split(value)[0] for key, value in options.items()}
    lines = [f"{key} = {found[key]}" for key in INDEXES if key in found]
    if "cert" in found:
        yield found["cert"], Path(found["cert"])
    path = STORE / "pip.conf"
    path.write_text("\n".join(["[global]", *lines, ""]))
    yield "/etc/pip.conf", path


def _reachable(lock: Path) -> bool:
    """Return whether the package index of a lock file answers."""
    (index,) = re.findall(r"^--index-url (\S+)$", lock.read_text(), re.MULTILINE)
    command: Sequence[str] = ["curl", "--silent", "--max-time", "10", "--head", f"{index}/torch/"]
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
