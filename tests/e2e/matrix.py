"""The SDK on every interpreter and set of packages that go together: `make matrix`.

Installs the wheel, without the server, into one environment for each pair, and makes calls of every
shape from it (tests/support/sdk_session.py): to a fake server there, and to a real server of this
environment; with protobuf's implementation in C, and with the one in Python. Interpreters that the
machine lacks are named. The exit code is 1 if a pair failed or a set of packages had no
interpreter.

`make test` runs each set of packages on one interpreter.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.support.interpreters import PYTHONS, interpreter
from tests.support.pictures import encode, photo_like
from tests.support.sdk_environment import (
    PACKAGE_SETS,
    PackageSet,
    build_wheel,
    make_environment,
    run_session,
)
from tests.support.serving import server_processes


def try_pair(
    home: Path,
    python: str,
    wheel: Path,
    packages: PackageSet,
    version: str,
    server: str,
    photo: Path,
) -> bool:
    """Run the session in an environment of one pair, and print a line; return whether it passed."""
    began = time.monotonic()
    try:
        made = make_environment(home, python, wheel, packages.pins_of(version))
        for implementation in ("upb", "python"):
            found = run_session(made, server, photo, implementation=implementation)
    except RuntimeError as error:
        print(f"FAILED  {packages.name}, {python}\n{error}", flush=True)
        return False
    print(
        f"passed  {packages.name:10} CPython {found['python']:8} grpcio {found['grpcio']:8}"
        f" protobuf {found['protobuf']:8} numpy {found['numpy']:7}"
        f" {len(found['checks'])} checks twice, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return True


def main() -> int:
    """Run all pairs; return the exit code."""
    found = {version: interpreter(version) for version in PYTHONS}
    for version, python in found.items():
        if python is None:
            print(f"absent  CPython {version}: not on the path, in pyenv or in uv; not tested")
    failed = False
    with tempfile.TemporaryDirectory() as scratch, server_processes() as start:
        root = Path(scratch)
        photo = root / "photo.jpg"
        photo.write_bytes(encode(photo_like(64, 48), "JPEG"))
        wheel = build_wheel(root)
        server = start("--variants", "IMAGENET1K_V2", "--engine", "null").wait_until_listening()
        for packages in PACKAGE_SETS:
            pythons = [(version, found[version]) for version in packages.pythons if found[version]]
            if not pythons:
                print(f"FAILED  {packages.name}: needs CPython {' or '.join(packages.pythons)}")
                failed = True
            for version, python in pythons:
                assert python is not None
                home = root / f"{packages.name}-{version}"
                failed |= not try_pair(home, python, wheel, packages, version, server, photo)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
