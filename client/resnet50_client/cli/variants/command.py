"""The commands of `resnet50 variants`."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ...client import Client
from ...connection import CHANGE_TIMEOUT_S
from ...results import LoadedVariant, Variant
from ..options import AsJson, Timeout
from ..output import EXIT_STATUSES, errors_shown, printable, say, say_json
from ..output import show as show_table
from ..servers import Servers, with_servers
from . import table
from .each import ask_each, change_each
from .loading import load as load_watched
from .splitting import split, splits, unsplit

_OF_CHANGES = (
    "Several servers, each under a --server of its own, are changed one after another; the first"
    " that fails is the last that is asked. Needs a token with the scope admin, and servers with"
    f" --variants-dir. A restarted server holds what its settings say. {EXIT_STATUSES}"
)

Name = Annotated[str, typer.Argument(help="The variant's name.")]
Patience = Annotated[
    float,
    typer.Option(
        "--timeout-s", min=0.001, help="How long one server may take, in seconds; then it goes on."
    ),
]


class _ListUnlessSaid(TyperGroup):
    """`resnet50 variants` alone, or with options only, lists."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


variants = typer.Typer(
    cls=_ListUnlessSaid,
    help="List the weights that servers hold (without a command), show, load, unload and compare"
    " them.",
    epilog=EXIT_STATUSES,
)


@variants.command("list", epilog=EXIT_STATUSES)
@with_servers
def list_variants(servers: Servers, timeout_s: Timeout = None, as_json: AsJson = False) -> None:
    """List the weights that each server holds, with what is being loaded and what failed."""

    def show(address: str, client: Client) -> None:
        found = client.variants()
        if as_json:
            for one in found:
                say_json({"server": address, **dataclasses.asdict(one)})
            return
        say(f"{address}:")
        show_table(table.table(printable(found)))
        for line in table.failures(found):
            say(line)

    ask_each(servers, timeout_s, show)


@variants.command(epilog=EXIT_STATUSES)
@with_servers
def show(
    servers: Servers,
    name: Annotated[str, typer.Argument(help="Its name or alias; default: the default.")] = "",
    timeout_s: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Show one variant in full, with its categories; of several servers, one answers."""
    with errors_shown(), servers.client(timeout_s) as client:
        found = dataclasses.asdict(client.variant(name))
        if as_json:
            say_json(found)
            return
        for key, value in found.items():
            say(f"{key:20} {', '.join(value) if key == 'categories' else value}")


@variants.command(epilog=_OF_CHANGES)
@with_servers
def load(
    servers: Servers,
    name: Annotated[
        str,
        typer.Argument(
            help="A folder in the servers' --variants-dir, or one of torchvision's names."
        ),
    ],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Let a served variant of that name give way."),
    ] = False,
    timeout_s: Patience = CHANGE_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Load a variant while servers answer."""

    def change(address: str, client: Client) -> None:
        began_s = time.monotonic()
        loaded = load_watched(client, address, name, replace, timeout_s)
        took_s = time.monotonic() - began_s
        if as_json:
            found = dataclasses.asdict(loaded) | {"took_s": round(took_s, 3)}
            say_json({"server": address, **found})
        else:
            say(f"{address}: {_loaded(loaded)}, in {took_s:.1f} s")

    change_each(servers, None, change)


@variants.command(epilog=_OF_CHANGES)
@with_servers
def unload(
    servers: Servers,
    name: Name,
    timeout_s: Patience = CHANGE_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Unload a variant while servers answer; those that use it are waited for."""

    def change(address: str, client: Client) -> None:
        unloaded = client.unload_variant(name, timeout_s=timeout_s)
        if as_json:
            say_json({"server": address, "variant": dataclasses.asdict(unloaded)})
        else:
            say(f"{address}: {_named(unloaded)} is unloaded")

    change_each(servers, None, change)


@variants.command(epilog=_OF_CHANGES)
@with_servers
def default(
    servers: Servers, name: Name, timeout_s: Timeout = None, as_json: AsJson = False
) -> None:
    """Let a loaded variant answer requests that name none."""

    def change(address: str, client: Client) -> None:
        new = client.set_default_variant(name)
        if as_json:
            say_json({"server": address, **dataclasses.asdict(new)})
        else:
            say(
                f"{address}: {_named(new.variant)} answers requests that name no variant,"
                f" as {new.previous} did"
            )

    change_each(servers, timeout_s, change)


variants.command(epilog=_OF_CHANGES)(split)
variants.command(epilog=EXIT_STATUSES)(splits)
variants.command(epilog=_OF_CHANGES)(unsplit)


def _loaded(loaded: LoadedVariant) -> str:
    one = loaded.variant
    text = f"{_named(one)} is loaded: {one.engine} on {one.device} in {one.precision}"
    if loaded.replaced_digest:
        text += f", in the place of {loaded.replaced_digest[:12]}"
    if loaded.evicted:
        text += f"; unloaded to make room: {', '.join(loaded.evicted)}"
    return text


def _named(one: Variant) -> str:
    return f"{one.name}, weights {one.digest[:12]},"
