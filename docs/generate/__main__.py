"""Regenerate the reference pages, or check that they are current.

python -m docs.generate            regenerate
python -m docs.generate --check    exit 1 if a page is not what the code generates
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from . import (
    command_line,
    dependencies,
    errors,
    exit_codes,
    grpc_api,
    metrics,
    pages,
    sdk,
    settings,
)

FOLDER = Path(__file__).resolve().parents[1] / "reference"
GENERATORS: dict[str, pages.Section] = {
    "dependencies": dependencies.section,
    "settings": settings.section,
    "commands": command_line.section,
    "grpc": grpc_api.section,
    "oip": grpc_api.oip_section,
    "errors": errors.section,
    "exit-codes": exit_codes.section,
    "metrics": metrics.section,
    "sdk": sdk.section,
}


def main(
    arguments: list[str] | None = None,
    folder: Path = FOLDER,
    generators: Mapping[str, pages.Section] = GENERATORS,
) -> int:
    """Run the command line; return the exit code.

    Args:
        arguments: Without the program's name; default: those of the process.
        folder: The folder of the pages.
        generators: The sections' generators by name.
    """
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args(arguments)
    return pages.update(
        pages.stale(folder, generators),
        folder.parents[1],
        options.check,
        "is not what the code generates: run `make reference`",
    )


if __name__ == "__main__":
    sys.exit(main())
