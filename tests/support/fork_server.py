"""Runs a command in a fork of an interpreter that has imported it already.

    python -m tests.support.fork_server PROGRAM SOCKET

Each request on the socket is a command's arguments, its environment, its working directory, and
four file descriptors: one to report on, and the command's stdin, stdout and stderr. `processes` is
the other end. Nothing but imports happens here before a fork: no thread, no gRPC object, whose
state would not survive it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

from typer.testing import CliRunner

COMMAND_PACKAGES = ("embed", "evaluate", "stream", "top", "variants")
SERVER_MODULES = ("resnet50_server.cli.serve", "numpy.random", "uvloop")
# Each program's typer app, and modules that it imports only when it needs them. Not torch, which
# stub engines do without, but for servers with another engine.
PROGRAMS = {
    "resnet50-server": ("resnet50_server.cli.main", SERVER_MODULES),
    "resnet50-server with torch": (
        "resnet50_server.cli.main",
        (*SERVER_MODULES, "resnet50_server.engines.autoselect", "resnet50_server.engines.devices"),
    ),
    "resnet50-gateway": ("resnet50_gateway.command", ("resnet50_gateway.process", "uvloop")),
    "resnet50": (
        "resnet50_cli.app",
        (
            *("PIL.Image", "grpc.experimental", "jinja2", "numpy.random", "psutil"),
            *("resnet50_cli.__main__", "resnet50_server.offline"),
            *("resnet50_cli.classify", "resnet50_cli.health", "resnet50_bench.command"),
            *(f"resnet50_cli.{name}.command" for name in COMMAND_PACKAGES),
        ),
    ),
}
MAX_REQUEST_BYTES = 2**20


def wait_for_request(control: socket.socket) -> dict[str, Any]:
    """Fork for each request; return it in the process that is to run it.

    Its parent, a fork of this process as well, reports its process ID, then its exit code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as sent to all processes of a terminal
    while True:
        message, files, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 4)
        reap_children()
        if not message:  # the tests have ended
            os._exit(0)
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    control.close()
    report, *streams = files
    if child := os.fork():
        for file in streams:
            os.close(file)
        os.write(report, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.close(report)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, file in enumerate(streams):
        os.dup2(file, target)
        os.close(file)
    request: dict[str, Any] = json.loads(message)
    return request


def reap_children() -> None:
    """Wait for those that have ended, so that `time make test` counts their CPU time."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def open_streams() -> None:
    """Replace the interpreter's streams by ones of the descriptors as they are now."""
    for file, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, f"__{name}__")
        new = open(  # noqa: SIM115
            file,
            "r" if name == "stdin" else "w",
            buffering=1 if name == "stderr" else -1,
            encoding=old.encoding,
            errors=old.errors,
            closefd=False,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def main() -> None:
    program, control = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    app, modules = PROGRAMS[program]
    for name in modules:
        importlib.import_module(name)
    # Typer imports what a help text or a usage error needs once it has one to print.
    for arguments in (["--help"], ["--no-such-option"]):
        CliRunner().invoke(importlib.import_module(app).app, arguments)
    gc.freeze()  # what it looks at it copies
    request = wait_for_request(control)
    open_streams()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [program.partition(" ")[0], *request["arguments"]]
    sys.modules["__main__"].__package__ = None  # by which usage errors name the program
    module, _, function = request["entry"].partition(":")
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    main()
