"""The commands of `resnet50 variants`."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from resnet50_client._admin import AdminClient
from resnet50_client._config import CHANGE_TIMEOUT_S
from resnet50_client.types import LoadResult, Variant

from ..connection_options import Servers, with_servers
from ..options import AsJson, Timeout
from ..output import EXIT_CODES_HELP, print_json, print_line, printable, reporting_errors
from ..output import show as show_table
from . import details, table
from .fan_out import query_each, update_each
from .load_progress import load as load_watched
from .traffic import split, splits, unsplit

_CHANGE_EPILOG = (
    "Several servers, one --server each, are changed one after another, until the first failure."
    " Needs a token with the scope admin, and servers with --variants-dir. Changes do not survive"
    f" a restart of the server. {EXIT_CODES_HELP}"
)

Name = Annotated[str, typer.Argument(help="The variant's name.")]
ChangeTimeout = Annotated[
    float,
    typer.Option(
        "--timeout-s",
        min=0.001,
        help="Seconds to wait for one server, which completes the change even after a timeout.",
    ),
]


class _ListByDefault(TyperGroup):
    """A group whose command is `list` unless another one is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names_none = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        if names_none and not ctx.resilient_parsing:  # as for shell completion
            args = ["list", *args]
        return super().parse_args(ctx, args)


variants = typer.Typer(
    name="variants",
    cls=_ListByDefault,
    help="List (the default command), show, load, unload and compare the variants of servers.",
    epilog=EXIT_CODES_HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@variants.command("list", epilog=EXIT_CODES_HELP)
@with_servers
def list_variants(servers: Servers, timeout_s: Timeout = None, as_json: AsJson = False) -> None:
    """List each server's variants, with loads in progress and failed loads."""

    def show(address: str, client: AdminClient) -> None:
        listed = client.list_variants()
        if as_json:
            for variant in listed:
                print_json({"server": address, **variant.to_dict()})
            return
        print_line(f"{address}:")
        show_table(table.table(printable(listed)))
        for line in table.failures(listed):
            print_line(line)

    query_each(servers, timeout_s, show)


@variants.command(epilog=EXIT_CODES_HELP)
@with_servers
def show(
    servers: Servers,
    name: Annotated[
        str | None, typer.Argument(help="Name or alias. Default: the server's default variant.")
    ] = None,
    timeout_s: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Show all details of a variant, with its categories; from any one of several servers."""
    with reporting_errors(), servers.client(timeout_s) as client:
        variant = client.get_variant(name)
        if as_json:
            print_json(variant.to_dict())
            return
        for line in details.lines(variant):
            print_line(line)


@variants.command(epilog=_CHANGE_EPILOG)
@with_servers
def load(
    servers: Servers,
    name: Annotated[
        str,
        typer.Argument(
            help="A folder in the servers' --variants-dir, or the name of a torchvision variant."
        ),
    ],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace a loaded variant of this name without downtime."),
    ] = False,
    timeout_s: ChangeTimeout = CHANGE_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Load a variant into running servers."""

    def change(address: str, client: AdminClient) -> None:
        began_s = time.monotonic()
        loaded = load_watched(client, address, name, replace, timeout_s)
        took_s = time.monotonic() - began_s
        if as_json:
            report = loaded.to_dict() | {"took_s": round(took_s, 3)}
            print_json({"server": address, **report})
        else:
            print_line(f"{address}: {_load_report(loaded)}, in {took_s:.1f} s")

    update_each(servers, None, change)


@variants.command(epilog=_CHANGE_EPILOG)
@with_servers
def unload(
    servers: Servers,
    name: Name,
    timeout_s: ChangeTimeout = CHANGE_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Unload a variant from running servers, after its requests in flight are complete."""

    def change(address: str, client: AdminClient) -> None:
        unloaded = client.unload_variant(name, timeout_s=timeout_s)
        if as_json:
            print_json({"server": address, "variant": unloaded.to_dict()})
        else:
            print_line(f"{address}: {_label(unloaded)} is unloaded")

    update_each(servers, None, change)


@variants.command(epilog=_CHANGE_EPILOG)
@with_servers
def default(
    servers: Servers, name: Name, timeout_s: Timeout = None, as_json: AsJson = False
) -> None:
    """Make a loaded variant the default, which serves requests that name none."""

    def change(address: str, client: AdminClient) -> None:
        new = client.set_default_variant(name)
        if as_json:
            print_json({"server": address, **new.to_dict()})
        else:
            print_line(
                f"{address}: {_label(new.variant)} is now the default instead of {new.previous}"
            )

    update_each(servers, timeout_s, change)


variants.command(epilog=_CHANGE_EPILOG)(split)
variants.command(epilog=EXIT_CODES_HELP)(splits)
variants.command(epilog=_CHANGE_EPILOG)(unsplit)


def _load_report(loaded: LoadResult) -> str:
    new = loaded.variant
    text = f"{_label(new)} is loaded: {new.engine} on {new.device} in {new.precision}"
    if loaded.replaced_digest:
        text += f", replacing {loaded.replaced_digest[:12]}"
    if loaded.evicted:
        text += f"; evicted: {', '.join(loaded.evicted)}"
    return text


def _label(variant: Variant) -> str:
    return f"{variant.name}, weights {(variant.digest or '-')[:12]},"
