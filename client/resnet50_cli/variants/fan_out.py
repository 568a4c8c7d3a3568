"""One operation on each of several servers, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import typer

from resnet50_client._admin import AdminClient
from resnet50_client.errors import CallCancelledError, DeadlineExceededError, UnavailableError

from ..connection_options import Servers
from ..output import INTERRUPTED, reporting_errors, warn

# After these it is unknown whether the server has started the change, which it then completes.
_OUTCOME_UNKNOWN = (CallCancelledError, DeadlineExceededError, KeyboardInterrupt, UnavailableError)


def query_each(
    servers: Servers, timeout_s: float | None, query: Callable[[str, AdminClient], None]
) -> None:
    """Query every server, even after one fails.

    Args:
        servers: The servers.
        timeout_s: Timeout of each call in seconds.
        query: Called with a server's address and its client.

    Raises:
        typer.Exit: A server is unreachable or rejected the call; stderr has the error.
    """
    first: typer.Exit | None = None
    with _clients(servers, timeout_s) as clients:
        for address, client in clients.items():
            try:
                with reporting_errors():
                    query(address, client)
            except typer.Exit as failed:
                if failed.exit_code == INTERRUPTED:
                    raise
                first = first or failed
    if first is not None:
        raise first


def update_each(
    servers: Servers, timeout_s: float | None, change: Callable[[str, AdminClient], None]
) -> None:
    """Change one server after another, until the first failure.

    Args:
        servers: The servers.
        timeout_s: Timeout in seconds of calls without a timeout of their own.
        change: Called with a server's address and its client.

    Raises:
        typer.Exit: A change failed; stderr has the error and the servers changed so far.
    """
    with _clients(servers, timeout_s) as clients:
        remaining = list(clients)
        done: list[str] = []
        while remaining:
            address = remaining.pop(0)
            try:
                with reporting_errors():
                    change(address, clients[address])
            except typer.Exit as failed:
                if isinstance(failed.__cause__, _OUTCOME_UNKNOWN):
                    warn(
                        f"{address} may still complete the change; to check:"
                        f" resnet50 variants --server {address}"
                    )
                if len(clients) > 1:
                    warn(
                        f"stopped at {address}; changed: {_listed(done)};"
                        f" not attempted: {_listed(remaining)}"
                    )
                raise
            done.append(address)


@contextmanager
def _clients(servers: Servers, timeout_s: float | None) -> Iterator[dict[str, AdminClient]]:
    with ExitStack() as opened:
        with reporting_errors():
            clients = servers.admin_clients(timeout_s)
        for client in clients.values():
            opened.enter_context(client)
        yield clients


def _listed(addresses: list[str]) -> str:
    return ", ".join(addresses) or "none"
