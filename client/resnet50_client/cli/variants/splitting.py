"""The commands about traffic splits: `resnet50 variants split`, `splits` and `unsplit`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live

from ...client import Client
from ...splits import TrafficReport
from ..options import AsJson, Timeout
from ..output import INTERRUPTED, console, printable, say, say_json, show
from ..servers import Servers, with_servers
from .each import ask_each, change_each
from .report import shown, summary

Found = list[tuple[str, list[TrafficReport]]]


@with_servers
def split(
    servers: Servers,
    variant: Annotated[str, typer.Argument(help="The variant that requests ask for.")],
    candidate: Annotated[str, typer.Argument(help="The one that is judged, loaded too.")],
    canary: Annotated[
        float,
        typer.Option(
            "--canary",
            min=0.0,
            max=100.0,
            help="Callers that the candidate answers, in percent, in steps of 0.01.",
        ),
    ] = 0.0,
    shadow: Annotated[
        float,
        typer.Option(
            "--shadow",
            min=0.0,
            max=100.0,
            help="Images that the candidate computes as well, in percent; nobody waits for that.",
        ),
    ] = 0.0,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--canary-embeddings",
            help="Let the candidate also answer its callers' requests for embeddings, whose vectors"
            " are of another space.",
        ),
    ] = False,
    timeout_s: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Compare a candidate with a variant on its requests, or change the shares."""

    def change(address: str, client: Client) -> None:
        report = client.set_traffic_split(
            variant,
            candidate,
            canary_percent=canary,
            shadow_percent=shadow,
            canary_embeddings=embeddings,
        )
        if as_json:
            _print_json([(address, [report])])
        else:
            say(f"{address}: {summary(report)}")

    change_each(servers, timeout_s, change)


@with_servers
def splits(
    servers: Servers,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")
    ] = False,
    interval_s: Annotated[
        float, typer.Option("--interval-s", min=0.1, help="Seconds between two looks.")
    ] = 2.0,
    timeout_s: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Show what came of each server's traffic splits, variant and candidate side by side."""
    if not watch:
        found: Found = []
        try:
            _look(servers, timeout_s, found)
        finally:
            _print(found, as_json)
        return
    with contextlib.suppress(KeyboardInterrupt):  # a good end: nothing is left undone
        _watch(_looks(servers, timeout_s, interval_s), as_json)


@with_servers
def unsplit(
    servers: Servers,
    variant: Annotated[str, typer.Argument(help="The variant that has the split.")],
    timeout_s: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """End a traffic split, and show what came of it."""

    def change(address: str, client: Client) -> None:
        _print([(address, [client.delete_traffic_split(variant)])], as_json)

    change_each(servers, timeout_s, change)


def _look(servers: Servers, timeout_s: float | None, found: Found) -> None:
    ask_each(
        servers,
        timeout_s,
        lambda address, client: found.append((address, client.list_traffic_splits())),
    )


def _looks(servers: Servers, timeout_s: float | None, interval_s: float) -> Iterator[Found]:
    """Look again and again. A server that does not answer may do so the next time."""
    while True:
        found: Found = []
        try:
            _look(servers, timeout_s, found)
        except typer.Exit as ended:
            if ended.exit_code == INTERRUPTED:
                raise KeyboardInterrupt from ended
        yield found
        time.sleep(interval_s)


def _watch(looks: Iterator[Found], as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        for found in looks:
            _print(found, as_json)
        return
    with Live(console=console(), auto_refresh=False) as live:
        for found in looks:
            live.update(Group(*(shown(*printable(one)) for one in found)), refresh=True)


def _print(found: Found, as_json: bool) -> None:
    if as_json:
        _print_json(found)
        return
    for one in found:
        show(shown(*printable(one)))


def _print_json(found: Found) -> None:
    for address, reports in found:
        for one in reports:
            say_json({"server": address, **dataclasses.asdict(one)})
