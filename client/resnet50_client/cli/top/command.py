"""The command `resnet50 top`."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.live import Live

from ...retries import RetryPolicy
from ..options import AsJson
from ..output import NO_SERVER, console, print_json, print_line, reporting_errors, show, warn
from ..servers import Servers, with_servers
from .facts import Facts
from .keys import keys
from .scrape import DEFAULT_METRICS, METRICS, Endpoint
from .snapshot import Snapshot, snapshots
from .view import View
from .watch import STALE_INTERVALS, Watch

EXIT_STATUSES = (
    "Exit status: 0 it was ended by q or Ctrl-C, or --once printed its figures; 1 the output cannot"
    " be written; 2 wrong usage; 3 no server answers --once."
)
# How soon a key and a new size of the window are seen.
_KEYS_S = 0.1


@with_servers
def top(
    servers: Servers,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            help="HOST:PORT or URL of a server's metrics (its --metrics-listen); repeat for several"
            f" servers, which are shown each and added up. Environment: {METRICS}."
            f" Default: {DEFAULT_METRICS}.",
        ),
    ] = None,
    interval_s: Annotated[
        float,
        typer.Option(
            "--interval-s", min=0.1, help="Seconds between two looks; rates are of this time."
        ),
    ] = 2.0,
    # A server whose event loop is stuck answers after 2 s, with what it has.
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=0.001, help="Seconds that a server has to answer.")
    ] = 5.0,
    once: Annotated[
        bool,
        typer.Option("--once", help="Print the figures of one interval, and end."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Watch servers: rates, latencies, batches, queues and variants, live.

    Figures are of the last interval, from the servers' own counters; latencies are interpolated
    within histogram buckets. "-" is what a server does not export or what is not known yet. q or
    Ctrl-C ends it. Into a pipe it prints one snapshot after the other.

    Servers that take calls where --server says are asked for the states of their variants, which
    metrics do not tell; with --metrics they are only asked if --server names them.
    """
    with reporting_errors(), _ending():
        stale_s = max(10.0, STALE_INTERVALS * interval_s)
        named = metrics or os.environ.get(METRICS, "").replace(",", " ").split()
        endpoints = dict.fromkeys(map(Endpoint.of, named or [DEFAULT_METRICS]))
        watches = [Watch(endpoint, timeout_s, stale_s) for endpoint in endpoints]
        # Whatever runs at the default address need not be what is watched elsewhere.
        # A thread may be asking until the process ends, so nobody closes them.
        asked = servers.given().server or not named
        once_each = RetryPolicy(attempts=1)
        facts = Facts(servers.clients(timeout_s, retry=once_each) if asked else {})
        facts.start()
        found = snapshots(watches, facts, interval_s)
        if once:
            _print_once(found, facts, as_json)
        elif as_json:
            for snapshot in found:
                _print_json(snapshot)
        elif sys.stdout.isatty():
            _live(found)
        else:
            _print_all(found)


def _print_once(found: Iterator[Snapshot], facts: Facts, as_json: bool) -> None:
    """Print one interval; without a server that answers, end at once."""
    snapshot = next(found)
    if snapshot.together is not None:
        facts.wait()
        snapshot = next(found)
    if as_json:
        _print_json(snapshot)
    else:
        view = View()
        view.show(snapshot)
        show(view)
    if snapshot.together is None:
        for one in snapshot.servers:
            warn(f"{one.url}: {one.failure}")
        raise typer.Exit(NO_SERVER)


def _print_json(snapshot: Snapshot) -> None:
    print_json(snapshot.to_json())


def _print_all(found: Iterator[Snapshot]) -> None:
    view = View()
    for number, snapshot in enumerate(found):
        view.show(snapshot)
        if number:
            print_line("")
        show(view)


def _live(found: Iterator[Snapshot]) -> None:
    """Show snapshots on a screen of their own until q is pressed; Ctrl-Z leaves it for a while."""
    newest: queue.SimpleQueue[Snapshot | Exception] = queue.SimpleQueue()

    def look() -> None:
        try:
            for snapshot in found:
                newest.put(snapshot)
        except Exception as error:  # raised where the screen is given back first
            newest.put(error)

    threading.Thread(target=look, name="look at servers", daemon=True).start()
    view = View("q ends" if sys.stdin.isatty() else "Ctrl-C ends", fit=True)
    while True:
        try:
            with _suspending(), keys() as pressed:
                _until_q(view, newest, pressed)
            return
        except _Suspended:
            # With the terminal as it was; goes on here once it is in the foreground again.
            os.kill(os.getpid(), signal.SIGSTOP)


def _until_q(
    view: View, newest: queue.SimpleQueue[Snapshot | Exception], pressed: Callable[[], str]
) -> None:
    window = console()
    with Live(view, console=window, screen=True, auto_refresh=False) as screen:
        size = window.size
        while not {"q", "Q"} & set(pressed()):
            try:
                seen = newest.get(timeout=_KEYS_S)
                if isinstance(seen, Exception):
                    raise seen
                view.show(seen)
            except queue.Empty:
                if window.size == size:
                    continue
            size = window.size
            screen.refresh()


class _Suspended(Exception):
    """Ctrl-Z was pressed."""


@contextmanager
def _suspending() -> Iterator[None]:
    """Turn Ctrl-Z into an exception, where there is such a signal."""
    if sys.platform == "win32":
        yield
        return

    def suspend(*_: Any) -> None:
        raise _Suspended

    before = signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


@contextmanager
def _ending() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a pipe's closed end be good ends: nothing is left undone."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # Else the interpreter complains as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        signal.signal(signal.SIGTERM, before)
