"""The command `resnet50-server`, also as `python -m resnet50_server`."""

from __future__ import annotations

import io
import sys

from resnet50_server.runtime.extras import missing_package


def main() -> None:
    """Run the command line; exit with status 2 if a package that it needs is not installed."""
    # Names of files and categories have any characters; the output of an old locale has few.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        from resnet50_server.cli.main import run
    except ModuleNotFoundError as error:
        print(missing_package(error), file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
