"""The command `health`."""

from __future__ import annotations

from typing import Annotated

import typer

from .connection_options import Servers, with_servers
from .options import AsJson
from .output import NO_SERVER, print_json, print_line, reporting_errors

HEALTH_TIMEOUT_S = 5.0


@with_servers
def health(
    servers: Servers,
    service: Annotated[
        str, typer.Option(help="Full name of a gRPC service. Default: the whole server.")
    ] = "",
    wait_s: Annotated[
        float, typer.Option("--wait-s", min=0, help="Seconds to wait for the server to be ready.")
    ] = 0.0,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s",
            min=0.001,
            help=f"Timeout of one call in seconds. Default: {HEALTH_TIMEOUT_S:g}.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show whether the server is ready for requests; exit code 0 if it is."""
    with reporting_errors(), servers.client(timeout_s, HEALTH_TIMEOUT_S) as client:
        if wait_s:
            client.wait_until_ready(timeout_s=wait_s)
        status = client.health(service)
        if as_json:
            print_json({"status": status})
        else:
            print_line(status)
    if status != "SERVING":
        raise typer.Exit(NO_SERVER)
