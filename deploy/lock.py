"""Pin the packages of the image; run by `make lock`.

Three files in deploy/lock:

* server.txt: all packages but PyTorch's, with hashes;
* torch-cuda.txt: torch, torchvision and the CUDA libraries of PyPI, with hashes;
* torch-cpu.txt: torch and torchvision of PyTorch's own index, by version.

The versions are those of the environment that runs this script, so that the image has the packages
with which the tests ran. uv resolves them for the image's Python, from PyPI alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = Path(__file__).with_suffix("")
EXTRAS = ("server", "http", "heif", "cpu", "cli", "top", "otel", "remote")
PYPI = "https://pypi.org/simple"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Packages that differ between the CPU and the CUDA build of PyTorch.
TORCH = re.compile(r"(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
HEADER = "# Made by `make lock`; do not edit.\n"


def image_python() -> str:
    """Return the version of Python in the image, such as "3.12"."""
    found = re.search(r"^FROM python:(\d+\.\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("Dockerfile: no line begins with `FROM python:VERSION`")
    return found[1]


def installed() -> str:
    """Return a constraint for each package of this environment, without local versions."""
    pins = {
        f"{one.metadata['Name']}=={one.version.partition('+')[0]}"
        for one in distributions()
        if one.metadata["Name"] != "resnet50-serving"
    }
    return "".join(f"{pin}\n" for pin in sorted(pins))


def resolve(constraints: Path) -> list[str]:
    """Return a requirement with its hashes for each package of the image, in order of name."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config"]
    command += ["--default-index", PYPI, "--constraints", str(constraints)]
    command += ["--python-version", image_python(), "--python-platform", "x86_64-manylinux_2_28"]
    command += ["--generate-hashes", "--no-header", "--no-annotate"]
    command += [f"--extra={extra}" for extra in EXTRAS]
    done = subprocess.run(
        [*command, "pyproject.toml"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return re.split(r"\n(?=\S)", done.stdout.strip())


def main() -> None:
    """Write the three files."""
    constraints = ROOT / ".cache" / "constraints.txt"
    for folder in (constraints.parent, LOCK):
        folder.mkdir(exist_ok=True)
    constraints.write_text(installed())
    pins = resolve(constraints)
    torch = [pin for pin in pins if TORCH.match(pin)]
    versions = [pin.split()[0] for pin in torch if re.match(r"torch(vision)?==", pin)]
    for name, lines in (
        ("server", [pin for pin in pins if pin not in torch]),
        ("torch-cuda", torch),
        ("torch-cpu", [f"--index-url {CPU_INDEX}", *versions]),
    ):
        path = LOCK / f"{name}.txt"
        path.write_text(HEADER + "\n".join(lines) + "\n")
        print(f"{path.relative_to(ROOT)}: {sum('==' in line for line in lines)} packages")


if __name__ == "__main__":
    main()
