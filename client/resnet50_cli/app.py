"""The command `resnet50`, assembled. Results go to stdout, everything else to stderr."""

from __future__ import annotations

from typing import Annotated

import typer

from resnet50_client import __version__

from .lazy_group import CommandSource, lazy_group
from .output import EXIT_CODES_HELP, print_line

COMMANDS = (
    CommandSource("resnet50_cli.classify", "classify"),
    CommandSource("resnet50_cli.embed.command", "embed"),
    CommandSource("resnet50_cli.evaluate.command", "evaluate"),
    CommandSource("resnet50_cli.stream.command", "stream"),
    CommandSource("resnet50_bench.command", "bench"),
    CommandSource("resnet50_cli.top.command", "top"),
    CommandSource("resnet50_cli.variants.command", "variants"),
    CommandSource("resnet50_cli.health", "health"),
)

app = typer.Typer(
    name="resnet50",
    cls=lazy_group(COMMANDS),
    help="Classify and embed images with a ResNet50 server.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(__version__)
        raise typer.Exit


@app.callback()
def _options(
    wanted: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass
