"""The command `resnet50-server`: its subcommands, usage errors and exit code."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, NoReturn

import typer

from resnet50_settings.command import run_command

from .flags import FLAGS
from .ray import ray
from .tokens import tokens
from .variants import variants

EXIT_CODES_HELP = (
    "Exit codes: 0 success; 1 failure; 2 wrong usage or settings. Others, of a server that stops"
    " because of a fault, are in docs/reference/exit-codes.md."
)

app = typer.Typer(
    name="resnet50-server",
    help="Serve ResNet50 variants over gRPC.",
    epilog=EXIT_CODES_HELP,
    pretty_exceptions_enable=False,
)
app.add_typer(variants, name="variants")
app.add_typer(tokens, name="tokens")
app.add_typer(ray, name="ray")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; default: those of the process.

    Returns:
        The exit code: 0, 1 (failure), 2 (wrong usage); others are in docs/reference/exit-codes.md.
    """
    return run_command(app, "resnet50-server", arguments)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        print(f"resnet50-server {version('resnet50-serving')}")
    except PackageNotFoundError:
        print("resnet50-server, run from its sources")
    raise typer.Exit


@app.callback()
def _options(
    wanted: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command(epilog=EXIT_CODES_HELP)
@FLAGS.declare
def serve(**flags: Any) -> int:
    """Serve variants over gRPC until SIGTERM, then finish the requests in flight.

    Each option is also an environment variable (--max-batch-size: RESNET50_MAX_BATCH_SIZE; lists
    are separated by commas) and a key of the TOML file that --config names (max_batch_size). Flags
    override the environment, which overrides the file.
    """
    # Read when grpc is imported. Its C core would log a line for each malformed header that a
    # client sends, up to 18 MB a second.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    settings = FLAGS.read(flags)
    from resnet50_server.runtime.streams import unblocked_stderr
    from resnet50_server.telemetry import logs

    logs.configure(settings.log_level, settings.log_format)
    # Objects made until the first variant is loaded live as long as the process (`serve.serve`);
    # collecting garbage among them repeatedly would take a tenth of the start.
    gc.disable()
    from .serve import serve as run_server

    # Not asyncio.run, which waits for threads.
    with unblocked_stderr(), contextlib.closing(_new_event_loop()) as loop:
        return loop.run_until_complete(run_server(settings))


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop, which reduces gRPC's cost by a fifth; asyncio's on Windows."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()

    class Loop(uvloop.Loop):
        """Reads the clock on every call, as asyncio's loop; uvloop's has steps of a millisecond."""

        def time(self) -> float:
            return time.monotonic()

    return Loop()


def run() -> NoReturn:
    """Run the command line as a process of its own.

    The process ends at once: a thread may still be busy with work that is not needed any more, and
    the interpreter would wait for it.
    """
    from resnet50_server.runtime.extras import missing_package
    from resnet50_server.runtime.fatal import open_stack_file
    from resnet50_server.runtime.streams import complain, flush

    # A crash in a decoder or an engine prints the stacks of all threads.
    faulthandler.enable(open_stack_file())
    try:
        status = main()
    except ModuleNotFoundError as error:
        complain(missing_package(error))
        status = 2
    except Exception:
        complain(traceback.format_exc())
        status = 1
    # A stream that blocks a thread, because no process reads it, would block this thread too.
    if flush():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    os._exit(status)
