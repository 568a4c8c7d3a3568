"""Connection options, shared by all commands that call servers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet50_client._addresses import DEFAULT_SERVER
from resnet50_client._admin import AdminClient
from resnet50_client._client import Client
from resnet50_client._config import DEFAULT_TIMEOUT_S
from resnet50_client._profiles import Profile
from resnet50_client._retries import RetryPolicy

PANEL = "Connection (also from RESNET50_CA etc. or a profile)"


class Priority(str, Enum):
    """`Client`'s priorities."""

    interactive = "interactive"
    bulk = "bulk"


@dataclass(frozen=True)
class Servers:
    """Connection options of a command; environment and profile are read when needed.

    Attributes:
        flags: Options given on the command line.
        name: Name of the profile; None for the environment's, if any.
        file: Path of the profile file; None for the default path.
    """

    flags: Profile
    name: str | None
    file: Path | None

    @property
    def chosen(self) -> bool:
        """True if a connection option was given on the command line."""
        return self != Servers(Profile(), None, None)

    def profile(self, timeout_s: float | None, default_s: float = DEFAULT_TIMEOUT_S) -> Profile:
        """Return the complete connection options, with default server and timeout.

        Args:
            timeout_s: The command's --timeout-s; None if not given.
            default_s: Default timeout in seconds.

        Raises:
            ValueError: An option is invalid.
            OSError: The profile file cannot be read.
        """
        given = Profile(timeout_s=timeout_s).over(self.given())
        return given.over(Profile(server=(DEFAULT_SERVER,), timeout_s=default_s))

    def given(self) -> Profile:
        """Merge flags, environment and profile, without defaults; raises as `profile`."""
        return self.flags.with_defaults(self.name, self.file)

    def client(self, timeout_s: float | None, default_s: float = DEFAULT_TIMEOUT_S) -> Client:
        """Return a client of all servers; arguments and errors as of `profile` and `Client`."""
        return Client(**self.profile(timeout_s, default_s).arguments())

    def at(self, address: str) -> Servers:
        """Return the same options for another server."""
        return replace(self, flags=replace(self.flags, server=(address,)))

    def admin_clients(
        self,
        timeout_s: float | None,
        default_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
    ) -> dict[str, AdminClient]:
        """Return a client for administration per address; otherwise as `client`."""
        profile = self.profile(timeout_s, default_s)
        return {
            address: AdminClient(**replace(profile, server=(address,)).arguments(), retry=retry)
            for address in profile.server or ()
        }


def servers_of_options(
    server: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            help="host:port or unix:PATH; repeat for several. Environment: RESNET50_SERVER."
            f" Default: {DEFAULT_SERVER}.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            rich_help_panel=PANEL,
            help="Profile for options given neither by flag nor environment. Environment:"
            " RESNET50_PROFILE.",
        ),
    ] = None,
    profile_file: Annotated[
        Path | None,
        typer.Option(
            "--profile-file",
            rich_help_panel=PANEL,
            help="TOML file with tables profiles.NAME. Environment: RESNET50_PROFILE_FILE."
            " Default: resnet50/profiles.toml in the user's configuration folder.",
        ),
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            rich_help_panel=PANEL,
            help="Use TLS. Default: if --ca, --cert or --server-name is given. Without --ca,"
            " public CA certificates are trusted.",
        ),
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option(
            "--ca", metavar="FILE", rich_help_panel=PANEL, help="CA certificates to trust (PEM)."
        ),
    ] = None,
    cert: Annotated[
        str | None,
        typer.Option(
            "--cert",
            metavar="FILE",
            rich_help_panel=PANEL,
            help="Client certificate (PEM), for servers that require one (mTLS).",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="FILE", rich_help_panel=PANEL, help="Private key of --cert (PEM)."
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            rich_help_panel=PANEL,
            help="File with the bearer token. There is no flag for the token itself, because other"
            " users could see it in the process list; RESNET50_TOKEN can contain it.",
        ),
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(
            "--server-name",
            rich_help_panel=PANEL,
            help="Name expected in the server's certificate. Default: the address's host.",
        ),
    ] = None,
    insecure_token: Annotated[
        bool | None,
        typer.Option(
            "--insecure-token",
            rich_help_panel=PANEL,
            help="Allow sending the token over plaintext to other machines.",
        ),
    ] = None,
    priority: Annotated[
        Priority | None,
        typer.Option(
            "--priority",
            rich_help_panel=PANEL,
            help="Request priority; bulk yields to interactive traffic.",
        ),
    ] = None,
    caller_key: Annotated[
        str | None,
        typer.Option(
            "--caller-key",
            rich_help_panel=PANEL,
            help="Key by which a server's traffic split assigns this caller. Default: the"
            " caller's identity.",
        ),
    ] = None,
) -> Servers:
    """Return the servers and the connection options that a command's options name."""
    flags = Profile(
        server=tuple(server) if server else None,
        priority=priority.value if priority is not None else None,
        caller_key=caller_key,
        tls=tls,
        ca=ca,
        cert=cert,
        key=key,
        token_file=token_file,
        server_name=server_name,
        insecure_token=insecure_token,
    )
    return Servers(flags, profile, profile_file)


def with_servers(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command: its parameter `servers` becomes the options of `servers_of_options`."""
    own = inspect.signature(command, eval_str=True).parameters
    options = inspect.signature(servers_of_options, eval_str=True).parameters

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        servers = servers_of_options(**{name: arguments.pop(name) for name in options})
        command(**arguments, servers=servers)

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in [*own.values(), *options.values()]
        if parameter.name != "servers"
    ]
    # typer reads these instead of the command's own signature.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__
    return run
