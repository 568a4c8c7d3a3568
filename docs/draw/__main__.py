"""Draw the pictures of docs/images, or check that they are current.

python -m docs.draw            draw
python -m docs.draw --check    exit 1 if a picture is not what its source draws
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.generate.pages import update

from . import (
    batches,
    bench,
    delivery,
    kubernetes,
    overview,
    recovery,
    request,
    split,
    swap,
    throughput,
    top,
)

FOLDER = Path(__file__).resolve().parents[1] / "images"
PICTURES: dict[str, Callable[[], str]] = {
    "batches.svg": batches.draw,
    "bench.svg": bench.draw,
    "delivery.svg": delivery.draw,
    "kubernetes.svg": kubernetes.draw,
    "overview.svg": overview.draw,
    "recovery.svg": recovery.draw,
    "request-steps.svg": request.draw_steps,
    "request-times.svg": request.draw_times,
    "swap.svg": swap.draw,
    "throughput.svg": throughput.draw,
    "top.svg": top.draw,
    "traffic-split.svg": split.draw,
}


def main(
    arguments: list[str] | None = None,
    folder: Path = FOLDER,
    pictures: Mapping[str, Callable[[], str]] = PICTURES,
) -> int:
    """Run the command line; return the exit code.

    Args:
        arguments: Without the program's name; default: those of the process.
        folder: The folder of the pictures.
        pictures: Functions that draw them, by file name.
    """
    parser = argparse.ArgumentParser(prog="python -m docs.draw", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args(arguments)
    return update(
        {folder / name: draw() for name, draw in pictures.items()},
        folder,
        options.check,
        "is not what docs/draw draws: run `make pictures`",
    )


if __name__ == "__main__":
    sys.exit(main())
