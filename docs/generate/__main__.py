"""Regenerate the reference pages and the schema of the Helm chart, or check that they are current.

python -m docs.generate            regenerate
python -m docs.generate --check    exit 1 if a page is not what the code generates
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from . import (
    command_line,
    dependencies,
    errors,
    exit_codes,
    grpc_api,
    helm,
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
    "helm-values": helm.section,
    "sdk": sdk.section,
}
# Functions that return the current text of a file from the present one.
FILES: dict[str, Callable[[str], str]] = {
    "deploy/helm/resnet50/values.schema.json": helm.schema,
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
    root = folder.parents[1]
    files = {
        path: generate(path.read_text(encoding="utf-8"))
        for path, generate in ((root / name, generate) for name, generate in FILES.items())
        if path.exists()
    }
    return pages.update(
        pages.stale(folder, generators) | files,
        root,
        options.check,
        "is not what the code generates: run `make reference`",
    )


if __name__ == "__main__":
    sys.exit(main())
