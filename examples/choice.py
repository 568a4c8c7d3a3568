"""Which weights `make demo` and `make serve` serve, and why; never silently."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WANTED = "IMAGENET1K_V2"
DIGITS = Path(__file__).resolve().parents[1] / ".cache" / "digits"


def choose_variant() -> tuple[str, str]:
    """Return a variant's name and its `--variants` value: ImageNet weights, or else the digits."""
    print(
        f"{WANTED}: looking for the weights; a network that does not answer costs 5 s …", flush=True
    )
    download = subprocess.run(
        [sys.executable, "-m", "resnet50_server", "variants", "download", WANTED],
        stdout=subprocess.PIPE,  # progress and reasons go to stderr, which the caller sees
        text=True,
    )
    if download.returncode == 0:
        print(f"{WANTED}: {download.stdout.strip().splitlines()[-1]}")
        return WANTED, WANTED
    print(
        f"\nSo this is NOT {WANTED}: it is `digits`, a ResNet50 that knows handwritten digits and"
        " nothing else, built here by examples/digits.py. To see the real one, put the file named"
        " above in its place and start again.\n",
        flush=True,
    )
    if not (DIGITS / "variant.json").exists():
        _check_torchvision()
        from digits import build

        print("digits: fitting the head on 1397 digits, some seconds …")
        print(f"digits: right on {build(DIGITS):.1%} of 400 held-out digits")
    return "digits", f"digits={DIGITS}"


def _check_torchvision() -> None:
    """End the program, with one line, if torch and torchvision do not match."""
    from resnet50_server.errors import WeightsError

    try:
        import resnet50_server.variants.network  # noqa: F401
    except WeightsError as error:
        raise SystemExit(f"resnet50-server: {error}") from error
