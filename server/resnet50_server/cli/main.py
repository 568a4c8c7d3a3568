"""The command `resnet50-server`: which subcommand runs, and errors of its options."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import faulthandler
import gc
import os
import sys
import time
import traceback
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pydantic import ValidationError

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
resnet50-server --version
"""
# What stands for a value in `serve --help`, by the type that it has.
PLACEHOLDERS = {
    "str": "TEXT",
    "list[str]": "TEXT",
    "int": "N",
    "float": "NUMBER",
    "Path": "PATH",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; default: the process's own.

    Returns:
        The exit status: 0, 1 (could not do it), 2 (asked for wrongly); others are in
        docs/operations.md.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["serve"]:
        return _serve(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="resnet50-server",
        description=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="serve|variants|tokens")
    commands.add_parser("serve")
    variants = commands.add_parser("variants")
    tokens = commands.add_parser("tokens")
    from resnet50_server.cli import tokens as token_command

    token_command.add_arguments(tokens)
    if arguments[:1] == ["tokens"]:
        return token_command.run(parser.parse_args(arguments))
    # Brings torchvision along.
    from resnet50_server.cli import variants as command

    command.add_arguments(variants)
    options = parser.parse_args(arguments)
    return command.run(options)


def _serve(arguments: list[str]) -> int:
    # Read when grpc is imported. Its C core would write a line to stderr for each broken header of
    # a stranger, 18 MB a second.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from pydantic import ValidationError
    from pydantic_settings import CliSettingsSource, SettingsError

    from resnet50_server.settings import Settings, unknown_environment

    class Flags(CliSettingsSource[object]):
        """The command line, with placeholders for people instead of Python's types."""

        def _metavar_format(self, obj: Any) -> str:
            shown = super()._metavar_format(obj)
            return PLACEHOLDERS.get(shown, shown)

    if unknown := unknown_environment():
        for name in unknown:
            print(f"resnet50-server: environment: {_unknown(name)}", file=sys.stderr)
        return 2
    try:
        source = Flags(
            Settings,
            cli_prog_name="resnet50-server serve",
            cli_parse_args=arguments,
            cli_exit_on_error=False,
        )
        settings = Settings(_cli_settings_source=source)  # type: ignore[call-arg]
    except ValidationError as error:
        for line in _problems(error, arguments):
            print(f"resnet50-server: {line}", file=sys.stderr)
        return 2
    except (SettingsError, ValueError) as error:
        print(f"resnet50-server: {error}", file=sys.stderr)
        return 2
    from resnet50_server.telemetry import logs

    logs.configure(settings.log_level, settings.log_format)
    # Until a variant is loaded: what is made until then stays (see `serve`), and looking through it
    # for garbage again and again is a tenth of the start.
    gc.disable()
    from resnet50_server.cli.serve import serve

    # Not asyncio.run, which waits for threads.
    loop = _new_event_loop()
    try:
        return loop.run_until_complete(serve(settings))
    finally:
        loop.close()


def _problems(error: ValidationError, arguments: list[str]) -> list[str]:
    """Return what is wrong with the settings, one line for each problem, and where it was said."""
    from resnet50_server.settings import ENV_PREFIX, Settings

    lines = []
    for problem in error.errors(include_url=False):
        # Our own validators name the settings themselves where they compare several.
        reason = problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"]
        where = "".join(f"{part}: " for part in problem["loc"])
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":  # flags and environment are judged elsewhere
            lines.append(f"config: {_unknown(name)}")
            continue
        flag = f"--{name.replace('_', '-')}"
        source = ""
        if any(one == flag or one.startswith(f"{flag}=") for one in arguments):
            source = f" ({flag})"
        elif variable := next(
            (one for one in os.environ if one.upper() == ENV_PREFIX + name.upper()), None
        ):
            source = f" (in the environment, {variable})"
        elif name in Settings.model_fields:
            source = " (in the file that --config names)"
        lines.append(f"{where}{reason}{source}")
    return lines


def _unknown(name: str) -> str:
    """Say that a setting's name is none, and which one is nearest to it."""
    from resnet50_server.settings import ENV_PREFIX, Settings

    prefix = name[: len(ENV_PREFIX)] if name.upper().startswith(ENV_PREFIX) else ""
    word = name[len(prefix) :].lower()
    near = difflib.get_close_matches(word, Settings.model_fields, 1, cutoff=0.8)
    hint = f"; there is {prefix}{near[0].upper() if prefix else near[0]}" if near else ""
    return f"nothing is called {name}{hint}"


def _version() -> str:
    try:
        return f"resnet50-server {version('resnet50-serving')}"
    except PackageNotFoundError:
        return "resnet50-server, run from its sources"


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
    from resnet50_server.runtime.fatal import open_stack_file

    # A decoder or an engine that crashes says where, before the process is gone.
    faulthandler.enable(open_stack_file())
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
