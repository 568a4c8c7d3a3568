"""The options that say where servers are and who calls, for every command that makes calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..addresses import DEFAULT_SERVER
from ..client import Client
from ..connection import DEFAULT_TIMEOUT_S
from ..profile import Profile
from ..retries import RetryPolicy

PANEL = "Connection (or RESNET50_CA and so on, or a profile)"


class Priority(str, Enum):
    """As `Client` takes it."""

    interactive = "interactive"
    bulk = "bulk"


@dataclass(frozen=True)
class Servers:
    """What the flags say of them; the environment and the profile are read when they are needed.

    Attributes:
        flags: What was given.
        name: Of the profile; None for the one that the environment names, if it does.
        file: Where profiles stand; None for the usual place.
    """

    flags: Profile
    name: str | None
    file: Path | None

    def profile(self, timeout_s: float | None, default_s: float = DEFAULT_TIMEOUT_S) -> Profile:
        """Return all that is known, with a server and a deadline in any case.

        Args:
            timeout_s: As the command's flag says.
            default_s: If nothing says it.

        Raises:
            ValueError: Something is wrong.
            OSError: The profile file cannot be read.
        """
        known = Profile(timeout_s=timeout_s).over(self.known())
        return known.over(Profile(server=(DEFAULT_SERVER,), timeout_s=default_s))

    def known(self) -> Profile:
        """Return what flags, environment and profile say; errors as of `profile`."""
        return self.flags.with_defaults(self.name, self.file)

    def client(self, timeout_s: float | None, default_s: float = DEFAULT_TIMEOUT_S) -> Client:
        """Return a client of them; arguments and errors as of `profile`, and those of `Client`."""
        return Client(**self.profile(timeout_s, default_s).arguments())

    def clients(
        self,
        timeout_s: float | None,
        default_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
    ) -> dict[str, Client]:
        """Return a client of each address alone; otherwise as `client`."""
        profile = self.profile(timeout_s, default_s)
        return {
            one: Client(**replace(profile, server=(one,)).arguments(), retry=retry)
            for one in profile.server or ()
        }


def _servers(
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
            help="Says what neither flags nor environment do. Environment: RESNET50_PROFILE.",
        ),
    ] = None,
    profile_file: Annotated[
        Path | None,
        typer.Option(
            "--profile-file",
            rich_help_panel=PANEL,
            help="TOML with tables profiles.NAME; default: resnet50/profiles.toml in the user's"
            " configuration folder. Environment: RESNET50_PROFILE_FILE.",
        ),
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            rich_help_panel=PANEL,
            help="Speak TLS; default: if --ca, --cert or --server-name is given. Without --ca,"
            " public authorities are trusted.",
        ),
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option(
            "--ca", metavar="FILE", rich_help_panel=PANEL, help="Authorities to trust, in PEM."
        ),
    ] = None,
    cert: Annotated[
        str | None,
        typer.Option(
            "--cert",
            metavar="FILE",
            rich_help_panel=PANEL,
            help="Certificate of this client, for servers that want one.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="FILE", rich_help_panel=PANEL, help="Its private key."),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            rich_help_panel=PANEL,
            help="Holds the bearer token. There is no flag for the token itself, which others could"
            " see in the list of processes; RESNET50_TOKEN holds one.",
        ),
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(
            "--server-name",
            rich_help_panel=PANEL,
            help="The name to find in the server's certificate, if not that of the address.",
        ),
    ] = None,
    insecure_token: Annotated[
        bool | None,
        typer.Option(
            "--insecure-token",
            rich_help_panel=PANEL,
            help="Let the token leave this machine in clear text.",
        ),
    ] = None,
    priority: Annotated[
        Priority | None,
        typer.Option(
            "--priority", rich_help_panel=PANEL, help="bulk: others may go first, if in a hurry."
        ),
    ] = None,
    caller_key: Annotated[
        str | None,
        typer.Option(
            "--caller-key",
            rich_help_panel=PANEL,
            help="Who calls, to a server with a traffic split; default: who it takes the caller"
            " to be.",
        ),
    ] = None,
) -> Servers:
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
    """Give a command the options of `_servers` in the place of its parameter `servers`."""
    wanted = inspect.signature(command, eval_str=True).parameters
    options = inspect.signature(_servers, eval_str=True).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        servers = _servers(**{name: given.pop(name) for name in options})
        command(**given, servers=servers)

    shown = [one for one in wanted.values() if one.name != "servers"] + list(options.values())
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in shown]
    # What typer looks at instead of the command's own.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    del run.__wrapped__
    return run
