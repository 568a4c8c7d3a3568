"""The command `resnet50-server`."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import logging
import os
import sys
import time
from typing import NoReturn

USAGE = """\
resnet50-server serve [OPTIONS]          serve variants over gRPC; `serve --help` lists the options
resnet50-server variants list            the variants that torchvision publishes
resnet50-server variants show NAME       one of them, or NAME=DIRECTORY, in full
resnet50-server variants download NAME…  fetch weights, with their hash checked
resnet50-server variants verify          check the hashes of the files that are here
resnet50-server tokens new NAME          make a bearer token; `tokens new --help` lists the options
resnet50-server tokens list --file F     the tokens of a file
resnet50-server tokens revoke NAME --file F
                                         take one out
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; default: the process's own.

    Returns:
        The exit status: 0, 1 (could not do it) or 2 (asked for wrongly).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["serve"]:
        return _serve(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="resnet50-server",
        description=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="serve|variants|tokens")
    commands.add_parser("serve")
    variants = commands.add_parser("variants")
    tokens = commands.add_parser("tokens")
    from . import token_command

    token_command.add_arguments(tokens)
    if arguments[:1] == ["tokens"]:
        return token_command.run(parser.parse_args(arguments))
    # Brings torchvision along.
    from .variants import command

    command.add_arguments(variants)
    options = parser.parse_args(arguments)
    return command.run(options)


def _serve(arguments: list[str]) -> int:
    from pydantic import ValidationError
    from pydantic_settings import CliSettingsSource, SettingsError

    from .settings import Settings, unknown_environment

    if unknown := unknown_environment():
        print(f"resnet50-server: environment: nothing is called {unknown[0]}", file=sys.stderr)
        return 2
    try:
        source = CliSettingsSource[object](
            Settings,
            cli_prog_name="resnet50-server serve",
            cli_parse_args=arguments,
            cli_exit_on_error=False,
        )
        settings = Settings(_cli_settings_source=source)  # type: ignore[call-arg]
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            # Our own validators name the settings themselves where they compare several.
            reason = problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"]
            where = "".join(f"{part}: " for part in problem["loc"])
            print(f"resnet50-server: {where}{reason}", file=sys.stderr)
        return 2
    except (SettingsError, ValueError) as error:
        print(f"resnet50-server: {error}", file=sys.stderr)
        return 2
    # A decoder or an engine that crashes says where, before the process is gone.
    faulthandler.enable()
    from . import logs

    logs.configure(settings.log_level, settings.log_format)
    # Until everything is loaded: what is made until then stays (see `serve`), and looking through
    # it for garbage again and again is a tenth of the start.
    gc.disable()
    from .process import serve

    # Not asyncio.run, which waits for threads.
    loop = _new_event_loop()
    try:
        return loop.run_until_complete(serve(settings))
    finally:
        loop.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's, which takes a fifth off gRPC's cost; it is not made for Windows."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()

    class Loop(uvloop.Loop):
        """Tells the time as asyncio's own does; uvloop's stands still for a millisecond."""

        def time(self) -> float:
            return time.monotonic()

    return Loop()


def run() -> NoReturn:
    """Run the command line as a process of its own.

    It ends at once: a thread may be busy for long with what nobody waits for any more, and the
    interpreter would wait for it.
    """
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
