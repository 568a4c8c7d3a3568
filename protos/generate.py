"""Regenerate the Python stubs from the protos, or check that they are current.

    python protos/generate.py            regenerate
    python protos/generate.py --check    exit 1 if the committed stubs are not what would be made
    python protos/generate.py --descriptor-set FILE   write what `buf lint` reads
    python protos/generate.py --released   write released.binpb, at a release: what `buf breaking`
                                           compares later contracts with

The toolchain is an old one, in an environment of its own: its stubs work on every protobuf from
4.25 on and every grpcio from 1.62 on, those of a newer one on newer releases only
(docs/adr/0001-oldest-toolchain-for-stubs.md).
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLCHAIN = (
    "grpcio-tools==1.62.3",
    "protobuf==4.25.8",
    "googleapis-common-protos==1.66.0",
    "mypy-protobuf==3.6.0",
    "setuptools<81",  # grpcio-tools 1.62 imports pkg_resources
)
# Minor versions of CPython 3 that grpcio-tools 1.62 has wheels for.
MINORS = (12, 11, 10)
ROOT = Path(__file__).resolve().parent
PROTOS = sorted((ROOT / "resnet50" / "v1").glob("*.proto"))
# Compiled to a descriptor set, not to stubs, which would register it in protobuf's default pool.
OIP_PROTO = ROOT / "oip" / "open_inference.proto"
OIP_DESCRIPTORS = ROOT / "resnet50/oip/open_inference.binpb"
# Of the last release.
RELEASED = ROOT / "released.binpb"
CACHE = ROOT.parent / ".cache" / "protoc"


def interpreter() -> str:
    """Return a Python that the toolchain has wheels for: this one, or one on the path.

    Raises:
        SystemExit: There is none.
    """
    if sys.version_info.minor in MINORS:
        return sys.executable
    for minor in MINORS:
        found = shutil.which(f"python3.{minor}")
        # pyenv's shims exist for versions that are not active, too.
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    names = ", ".join(f"python3.{minor}" for minor in MINORS)
    sys.exit(f"{TOOLCHAIN[0]} has no wheel for this Python; install one of {names}")


def toolchain() -> Path:
    """Return the interpreter of the toolchain's environment, made on first use."""
    base = interpreter()
    key = hashlib.sha256("\n".join((*TOOLCHAIN, base)).encode()).hexdigest()[:12]
    home = CACHE / key
    python = home / "bin" / "python"
    finished = home / "installed"
    if not finished.exists():
        subprocess.run([base, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *TOOLCHAIN], check=True)
        finished.touch()
    return python


def protoc(*arguments: str, protos: list[Path] = PROTOS) -> None:
    """Run the toolchain's protoc over protos, by default those of the contract."""
    python = toolchain()
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    plugin = f"{python.parent}/protoc-gen-mypy"
    subprocess.run(
        [
            python,
            "-m",
            "grpc_tools.protoc",
            f"-I{ROOT}",
            f"-I{purelib}",
            f"--plugin=protoc-gen-mypy={plugin}",
            f"--plugin=protoc-gen-mypy_grpc={plugin}_grpc",
            *arguments,
            *(str(path.relative_to(ROOT)) for path in protos),
        ],
        check=True,
    )


def generate(out: Path) -> None:
    """Write the stubs of all protos below `out`."""
    protoc(
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    )


def oip_descriptors(out: Path, *options: str) -> None:
    """Write the descriptor set of the Open Inference Protocol."""
    protoc(*options, f"--descriptor_set_out={out}", protos=[OIP_PROTO])


def stubs(root: Path) -> dict[str, bytes]:
    """Return the stubs below `root`: path relative to it, and content."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*_pb2*.py*"))
        if path.suffix in (".py", ".pyi")
    }


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--descriptor-set", metavar="FILE", help="write the descriptor set only")
    parser.add_argument(
        "--oip-descriptor-set", metavar="FILE", help="the same of the Open Inference Protocol"
    )
    parser.add_argument("--released", action="store_true", help=f"write {RELEASED.name} only")
    options = parser.parse_args()
    if options.released:
        protoc("--include_imports", f"--descriptor_set_out={RELEASED}")
        return 0
    if options.oip_descriptor_set:
        out = Path(options.oip_descriptor_set).resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
        oip_descriptors(out, "--include_source_info")
        return 0
    if options.descriptor_set:
        out = Path(options.descriptor_set).resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
        protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={out}")
        return 0
    if not options.check:
        generate(ROOT)
        oip_descriptors(OIP_DESCRIPTORS)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = stubs(Path(scratch)), stubs(ROOT)
        oip_descriptors(fresh_descriptors := Path(scratch) / OIP_DESCRIPTORS.name)
        fresh_oip = fresh_descriptors.read_bytes()
    stale = sorted(
        name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name)
    )
    for name in stale:
        print(f"protos/{name} is not what its proto generates: run `make protos`", file=sys.stderr)
    if fresh_oip != OIP_DESCRIPTORS.read_bytes():
        stale.append(OIP_DESCRIPTORS.name)
        print(
            f"{OIP_DESCRIPTORS.name} is not what {OIP_PROTO.name} generates: run `make protos`",
            file=sys.stderr,
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
