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

from resnet50_client._retries import RetryPolicy
from resnet50_metrics.scrape import DEFAULT_METRICS, METRICS, Endpoint

from ..connection_options import Servers, with_servers
from ..extras import require
from ..options import AsJson
from ..output import NO_SERVER, console, print_json, print_line, reporting_errors, show, warn
from .keyboard import keys
from .poller import STALE_INTERVALS, Poller
from .snapshot import Snapshot, snapshots
from .variant_status import VariantStatusPoller
from .view import View

EPILOG = (
    "Exit codes: 0 ended by q or Ctrl-C, or --once succeeded; 1 the output cannot be written;"
    " 2 wrong usage; 3 no server responded to --once."
)
# Poll interval for keys and the window's size.
_KEY_POLL_S = 0.1


@with_servers
def top(
    servers: Servers,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            help="HOST:PORT or URL of a server's metrics (its --metrics-listen). Repeat for several"
            f" servers, shown individually and in total. Environment: {METRICS}."
            f" Default: {DEFAULT_METRICS}.",
        ),
    ] = None,
    interval_s: Annotated[
        float,
        typer.Option(
            "--interval-s", min=0.1, help="Poll interval in seconds; rates are averages over it."
        ),
    ] = 2.0,
    # A server whose event loop is stuck responds after 2 s with partial metrics.
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=0.001, help="Timeout of one poll in seconds.")
    ] = 5.0,
    once: Annotated[
        bool,
        typer.Option("--once", help="Print the metrics of one interval and exit."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show live metrics of servers: rates, latencies, batches, queues and variants.

    Values are of the last interval, computed from the servers' Prometheus metrics; latencies are
    interpolated within histogram buckets. "-" is a value that is unknown or not exported. q or
    Ctrl-C quits. If stdout is a pipe, snapshots are printed one after another.

    The states of variants, which metrics lack, are polled over gRPC from --server; with
    --metrics only if --server is given, too.
    """
    require("top", "top", "prometheus_client")
    with reporting_errors(), _normal_exit():
        stale_s = max(10.0, STALE_INTERVALS * interval_s)
        named = metrics or os.environ.get(METRICS, "").replace(",", " ").split()
        endpoints = dict.fromkeys(map(Endpoint.of, named or [DEFAULT_METRICS]))
        pollers = [Poller(endpoint, timeout_s, stale_s) for endpoint in endpoints]
        # With --metrics, the default gRPC address may be another server.
        use_grpc = servers.given().server or not named
        no_retry = RetryPolicy(attempts=1)
        # Never closed: the thread that uses these clients runs until the process ends.
        clients = servers.admin_clients(timeout_s, retry=no_retry) if use_grpc else {}
        statuses = VariantStatusPoller(clients)
        statuses.start()
        found = snapshots(pollers, statuses, interval_s)
        if once:
            _print_once(found, statuses, as_json)
        elif as_json:
            for snapshot in found:
                _print_json(snapshot)
        elif sys.stdout.isatty():
            _live(found)
        else:
            _print_all(found)


def _print_once(found: Iterator[Snapshot], statuses: VariantStatusPoller, as_json: bool) -> None:
    """Print one interval; exit at once if no server responds."""
    snapshot = next(found)
    if snapshot.total is not None:
        statuses.wait()
        snapshot = next(found)
    if as_json:
        _print_json(snapshot)
    else:
        view = View()
        view.show(snapshot)
        show(view)
    if snapshot.total is None:
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
    """Show snapshots full-screen until q is pressed; Ctrl-Z suspends."""
    newest: queue.SimpleQueue[Snapshot | Exception] = queue.SimpleQueue()

    def poll() -> None:
        try:
            for snapshot in found:
                newest.put(snapshot)
        except Exception as error:  # re-raised by the main thread, after it restores the screen
            newest.put(error)

    threading.Thread(target=poll, name="poll servers", daemon=True).start()
    view = View("q quits" if sys.stdin.isatty() else "Ctrl-C quits", fit=True)
    while True:
        with _signals() as received:
            with keys() as pressed:
                _until_q(view, newest, pressed, received)
            if received != {getattr(signal, "SIGTSTP", None)}:
                return
        # The terminal is restored; execution resumes here in the foreground.
        os.kill(os.getpid(), signal.SIGSTOP)


def _until_q(
    view: View,
    newest: queue.SimpleQueue[Snapshot | Exception],
    pressed: Callable[[], str],
    received: set[int],
) -> None:
    """Show snapshots until q is pressed or a signal is received."""
    window = console()
    with Live(view, console=window, screen=True, auto_refresh=False) as screen:
        size = window.size
        while not received and not {"q", "Q"} & set(pressed()):
            try:
                seen = newest.get(timeout=_KEY_POLL_S)
                if isinstance(seen, Exception):
                    raise seen
                view.show(seen)
            except queue.Empty:
                if window.size == size:
                    continue
            size = window.size
            screen.refresh()


@contextmanager
def _signals() -> Iterator[set[int]]:
    """Return the signals that were received: Ctrl-C, SIGTERM, and Ctrl-Z on systems that have it.

    An exception of their handlers would be lost where Python ignores exceptions, for example while
    an object is finalised.
    """
    received: set[int] = set()
    numbers = {signal.SIGINT, signal.SIGTERM} | {getattr(signal, "SIGTSTP", signal.SIGINT)}
    before = {number: signal.signal(number, lambda got, _: received.add(got)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _normal_exit() -> Iterator[None]:
    """Exit normally on Ctrl-C, SIGTERM and a closed pipe."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # Otherwise the interpreter reports an error as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        signal.signal(signal.SIGTERM, before)
