"""The command `resnet50`."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line; exit with status 2 if a package that it needs is not installed."""
    # Labels and names of files have any characters; a pipe on Windows, or an old locale, has few.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        from .app import app

        app(prog_name="resnet50")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("filelock", "typer", "rich"):
            raise
        print(
            f"resnet50 needs {package}: install resnet50-serving with the extra [cli]",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
