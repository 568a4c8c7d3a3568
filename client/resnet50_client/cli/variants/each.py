"""Servers one after another: what is asked of each, and what is changed on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import typer

from ...client import Client
from ...errors import CallCancelledError, DeadlineExceededError, UnavailableError
from ..output import INTERRUPTED, complain, errors_shown
from ..servers import Servers

# After these nobody knows whether the server has begun, and what it has begun it finishes.
_UNKNOWN = (CallCancelledError, DeadlineExceededError, KeyboardInterrupt, UnavailableError)


def ask_each(
    servers: Servers, timeout_s: float | None, question: Callable[[str, Client], None]
) -> None:
    """Ask every server; one that does not answer keeps none of the others from being asked.

    Args:
        servers: Which.
        timeout_s: For one call.
        question: Is given a server's address and a client of it alone.

    Raises:
        typer.Exit: One did not answer, or refused; which and why stands on stderr.
    """
    first: typer.Exit | None = None
    with _clients(servers, timeout_s) as clients:
        for address, client in clients.items():
            try:
                with errors_shown():
                    question(address, client)
            except typer.Exit as ended:
                if ended.exit_code == INTERRUPTED:
                    raise
                first = first or ended
    if first is not None:
        raise first


def change_each(
    servers: Servers, timeout_s: float | None, change: Callable[[str, Client], None]
) -> None:
    """Change one server after another; the first that fails is the last that is asked.

    Args:
        servers: Which.
        timeout_s: For calls that have no limit of their own.
        change: Is given a server's address and a client of it alone.

    Raises:
        typer.Exit: One failed; why, and where it was done and where not, stands on stderr.
    """
    with _clients(servers, timeout_s) as clients:
        waiting = list(clients)
        done: list[str] = []
        while waiting:
            address = waiting.pop(0)
            try:
                with errors_shown():
                    change(address, clients[address])
            except typer.Exit as ended:
                if isinstance(ended.__cause__, _UNKNOWN):
                    complain(
                        f"if {address} has begun, it goes on to the end; how far it is:"
                        f" resnet50 variants --server {address}"
                    )
                if len(clients) > 1:
                    complain(
                        f"stopped at {address}; done on: {_listed(done)};"
                        f" not asked: {_listed(waiting)}"
                    )
                raise
            done.append(address)


@contextmanager
def _clients(servers: Servers, timeout_s: float | None) -> Iterator[dict[str, Client]]:
    with ExitStack() as opened:
        with errors_shown():
            clients = servers.clients(timeout_s)
        for client in clients.values():
            opened.enter_context(client)
        yield clients


def _listed(addresses: list[str]) -> str:
    return ", ".join(addresses) or "none"
