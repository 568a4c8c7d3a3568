"""The command `resnet50`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in ("filelock", "typer", "rich"):
            raise
        print(
            f"resnet50: the command line needs {error.name}, which is not installed:"
            " install resnet50-serving with the extra [cli]",
            file=sys.stderr,
        )
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
