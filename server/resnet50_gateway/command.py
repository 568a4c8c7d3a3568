"""The command `resnet50-gateway`: settings in, exit code out."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from resnet50_settings.command import run_command
from resnet50_settings.flags import Flags

from .release import release
from .settings import ENV_PREFIX, Settings, unknown_environment

EXIT_CODES_HELP = "Exit codes: 0 success; 1 failure; 2 wrong usage or settings."
FLAGS = Flags(Settings, ENV_PREFIX, unknown_environment)
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Loggers that write a line for each malformed request, which clients can cause.
_CLIENT_NOISE = ("uvicorn.error", "websockets", "python_multipart")

app = typer.Typer(name="resnet50-gateway", pretty_exceptions_enable=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; default: those of the process.

    Returns:
        The exit code: 0 after a drain, 1 for a failure, 2 for settings that cannot be used.
    """
    given = None if arguments is None else list(arguments)
    return run_command(app, "resnet50-gateway", given)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"resnet50-gateway {release()}")
        raise typer.Exit


@app.command(epilog=EXIT_CODES_HELP)
@FLAGS.declare
def serve(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    **flags: Any,
) -> int:
    """Forward HTTP requests to gRPC servers until SIGTERM, then finish those in flight.

    Each option is also an environment variable (--max-body-bytes: RESNET50_GATEWAY_MAX_BODY_BYTES;
    lists are separated by commas). Flags override the environment.
    """
    settings = FLAGS.read(flags)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    if settings.log_level != "debug":
        for name in _CLIENT_NOISE:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    from .process import serve as run_gateway

    loop = _new_event_loop()
    try:
        return loop.run_until_complete(run_gateway(settings))
    finally:
        loop.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run() -> NoReturn:
    """Run the command line as a process of its own."""
    sys.exit(main())
