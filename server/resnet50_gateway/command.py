"""The command `resnet50-gateway`: settings in, exit code out."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pydantic import ValidationError
from pydantic_settings import SettingsError

from .settings import Settings, unknown_environment

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Loggers that write a line for each malformed request, which clients can cause.
_CLIENT_NOISE = ("uvicorn.error", "websockets", "python_multipart")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; default: those of the process.

    Returns:
        The exit code: 0 after a drain, 1 for a failure, 2 for settings that cannot be used.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if unknown := unknown_environment():
        print(f"resnet50-gateway: environment: unknown setting {unknown[0]}", file=sys.stderr)
        return 2
    try:
        settings = Settings(_cli_parse_args=given)  # type: ignore[call-arg]
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            reason = problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"]
            where = "".join(f"{part}: " for part in problem["loc"])
            print(f"resnet50-gateway: {where}{reason}", file=sys.stderr)
        return 2
    except SettingsError as error:
        print(f"resnet50-gateway: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    if settings.log_level != "debug":
        for name in _CLIENT_NOISE:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    from .process import serve

    loop = _new_event_loop()
    try:
        return loop.run_until_complete(serve(settings))
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
