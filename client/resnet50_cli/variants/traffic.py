"""Commands for traffic splits: `resnet50 variants split`, `splits` and `unsplit`."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Collection, Iterator
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live

from resnet50_client._admin import AdminClient
from resnet50_client.types import TrafficReport

from ..connection_options import Servers, with_servers
from ..options import AsJson, Timeout
from ..output import INTERRUPTED, console, print_json, print_line, printable, show
from .fan_out import query_each, update_each
from .traffic_table import reports_table, summary

Found = list[tuple[str, list[TrafficReport]]]


@with_servers
def split(
    servers: Servers,
    variant: Annotated[str, typer.Argument(help="The variant that requests name.")],
    candidate: Annotated[str, typer.Argument(help="The variant to compare with it, also loaded.")],
    canary: Annotated[
        float,
        typer.Option(
            "--canary",
            min=0.0,
            max=100.0,
            help="Percentage of callers served by the candidate, in steps of 0.01.",
        ),
    ] = 0.0,
    shadow: Annotated[
        float,
        typer.Option(
            "--shadow",
            min=0.0,
            max=100.0,
            help="Percentage of images that the candidate also computes, in the background.",
        ),
    ] = 0.0,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--canary-embeddings",
            help="Serve embeddings from the candidate, too; its vectors are of another space.",
        ),
    ] = False,
    timeout_s: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Split a variant's traffic with a candidate, or change the percentages."""

    def change(address: str, client: AdminClient) -> None:
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
            print_line(f"{address}: {summary(report)}")

    update_each(servers, timeout_s, change)


@with_servers
def splits(
    servers: Servers,
    watch: Annotated[bool, typer.Option("--watch", help="Poll until Ctrl-C.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval-s", min=0.1, help="Poll interval in seconds.")
    ] = 2.0,
    timeout_s: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Show the results of each server's traffic splits, variant and candidate side by side."""
    if not watch:
        found: Found = []
        try:
            _poll(servers, timeout_s, found)
        finally:
            _print(found, as_json)
        return
    with contextlib.suppress(KeyboardInterrupt), _interrupts() as received:  # a normal exit
        _watch(_polls(servers, timeout_s, interval_s, received), as_json)


@with_servers
def unsplit(
    servers: Servers,
    variant: Annotated[str, typer.Argument(help="The variant that has the split.")],
    timeout_s: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """End a traffic split and show its results."""

    def change(address: str, client: AdminClient) -> None:
        _print([(address, [client.delete_traffic_split(variant)])], as_json)

    update_each(servers, timeout_s, change)


def _poll(servers: Servers, timeout_s: float | None, found: Found) -> None:
    query_each(
        servers,
        timeout_s,
        lambda address, client: found.append((address, client.list_traffic_splits())),
    )


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Return a list that grows with each Ctrl-C, which interrupts as usual, too.

    KeyboardInterrupt alone is lost where Python ignores exceptions, for example while an object of
    gRPC is finalised.
    """
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _polls(
    servers: Servers, timeout_s: float | None, interval_s: float, interrupts: Collection[int]
) -> Iterator[Found]:
    """Poll until Ctrl-C; an unreachable server is polled again the next time."""
    while not interrupts:
        found: Found = []
        try:
            _poll(servers, timeout_s, found)
        except typer.Exit as failed:
            if failed.exit_code == INTERRUPTED:
                raise KeyboardInterrupt from failed
        yield found
        time.sleep(interval_s)


def _watch(polls: Iterator[Found], as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        for found in polls:
            _print(found, as_json)
        return
    with Live(console=console(), auto_refresh=False) as live:
        for found in polls:
            live.update(Group(*(reports_table(*printable(one)) for one in found)), refresh=True)


def _print(found: Found, as_json: bool) -> None:
    if as_json:
        _print_json(found)
        return
    for one in found:
        show(reports_table(*printable(one)))


def _print_json(found: Found) -> None:
    for address, reports in found:
        for one in reports:
            print_json({"server": address, **one.to_dict()})
