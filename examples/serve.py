"""Run by `make serve`: a server that stays, on 127.0.0.1:50051, until Ctrl-C."""

from __future__ import annotations

import os
import sys

from choice import choose_variant


def main() -> None:
    """Choose weights, then become the server; further arguments are passed to it."""
    _, spec = choose_variant()
    command = ["resnet50-server", "serve", "--variants", spec, *sys.argv[1:]]
    print("$ " + " ".join(command), flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "resnet50_server", *command[1:]])


if __name__ == "__main__":
    main()
