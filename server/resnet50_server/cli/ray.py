"""`resnet50-server ray`: deploy servers on a Ray cluster, show and delete them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .flags import FLAGS

if TYPE_CHECKING:
    from resnet50_server.ray.options import RayOptions
    from resnet50_server.ray.status import AppStatus

APP = "resnet50"
POLL_S = 0.5

ray = typer.Typer(help="Deploy servers on a Ray cluster, show and delete them.")

App = Annotated[str, typer.Option("--app", help="Name of the application.")]
Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        help="Address of the cluster: HOST:PORT, or auto for the one of this machine.",
    ),
]


@ray.command()
def deploy(
    serve_options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- SERVE_OPTIONS...]",
            help="Options of `resnet50-server serve`, such as --variants; paths are those of the"
            " nodes.",
        ),
    ] = None,
    app: App = APP,
    address: Address = "auto",
    min_replicas: Annotated[int, typer.Option("--min", min=1, help="Least number of servers.")] = 1,
    max_replicas: Annotated[
        int | None,
        typer.Option("--max", min=1, help="Greatest number of servers. Default: that of --min."),
    ] = None,
    num_cpus: Annotated[float, typer.Option(help="CPUs of a server.")] = 1.0,
    num_gpus: Annotated[float, typer.Option(help="GPUs of a server.")] = 0.0,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port of each server, one on a node; 0 for any free port."
        ),
    ] = 0,
    drain_timeout_s: Annotated[
        float, typer.Option(help="Time limit for calls in flight of a server that is stopped.")
    ] = 30.0,
    target_queue_age_s: Annotated[
        float, typer.Option(help="Add servers while images wait for longer, in seconds.")
    ] = 0.1,
    min_busy_ratio: Annotated[
        float,
        typer.Option(help="Remove a server while engines compute for less of the time, 0 to 1."),
    ] = 0.3,
    upscale_delay_s: Annotated[
        float, typer.Option(help="Seconds for which images have to wait before servers are added.")
    ] = 5.0,
    downscale_delay_s: Annotated[
        float, typer.Option(help="Seconds for which engines have to idle before one is removed.")
    ] = 120.0,
    admin_token_file: Annotated[
        str | None,
        typer.Option(help="File on the nodes with a token of the scope admin, for --variant."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Variant of --variants-dir to load beside those of --variants. Repeat for several."
            " Deploying again with others changes them without a restart."
        ),
    ] = None,
    default_variant: Annotated[
        str | None, typer.Option(help="Default variant of the servers.")
    ] = None,
    print_yaml: Annotated[
        bool,
        typer.Option("--yaml", help="Print the file for `serve deploy` or a RayService instead."),
    ] = False,
) -> None:
    """Deploy servers, or change those of an earlier deployment, and wait until they are ready.

    Calls go to the servers directly; `Client.from_ray()` of the SDK follows them. Servers that
    listen on other addresses than this machine's own need --tls-cert or --allow-plaintext.
    """
    from resnet50_server.ray.options import VariantConfig, WrongOptions, read_options

    config = VariantConfig(variants=tuple(variant or ()), default=default_variant)
    try:
        options = read_options(
            {
                "settings": _settings(serve_options or []),
                "min_replicas": min_replicas,
                "max_replicas": max_replicas,
                "num_cpus": num_cpus,
                "num_gpus": num_gpus,
                "port": port,
                "drain_timeout_s": drain_timeout_s,
                "target_queue_age_s": target_queue_age_s,
                "min_busy_ratio": min_busy_ratio,
                "upscale_delay_s": upscale_delay_s,
                "downscale_delay_s": downscale_delay_s,
                "admin_token_file": admin_token_file,
                "user_config": None if config == VariantConfig() else config,
            }
        )
    except WrongOptions as error:
        for problem in error.problems:
            print(f"resnet50-server: {problem}", file=sys.stderr)
        raise typer.Exit(2) from error
    if print_yaml:
        from resnet50_server.ray.yaml_file import application_yaml

        print(application_yaml(app, options), end="")
        return
    _connect(address)
    _deploy(app, options)


@ray.command()
def status(
    app: App = APP,
    address: Address = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the servers of an application, and why starts failed; exit code 1 without a server."""
    _connect(address)
    from resnet50_server.ray.status import read_status

    found = read_status(app)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _print_status(app, found)
    if not any(one.state == "ready" for one in found.servers):
        raise typer.Exit(1)


@ray.command()
def delete(app: App = APP, address: Address = "auto") -> None:
    """Stop the servers of an application; they complete the calls in flight."""
    _connect(address)
    from resnet50_server.ray.deploy import delete_app

    delete_app(app)


def _deploy(app: str, options: RayOptions) -> None:
    """Deploy, print failed starts as they happen, and then the servers or why there are none."""
    from resnet50_server.ray.deploy import Deployment
    from resnet50_server.ray.status import read_status

    deployment = Deployment(app, options)
    known = {one.replica for one in deployment.failed_starts()}  # of earlier deployments
    deployment.start()
    ended = False
    while not ended:
        ended = deployment.ended(POLL_S)
        for failed in deployment.failed_starts():
            if failed.replica not in known:
                known.add(failed.replica)
                print(f"resnet50-server: {failed.node}: {failed.reason}", file=sys.stderr)
    if deployment.error is not None:
        print(f"resnet50-server: {app}: {deployment.error}", file=sys.stderr)
        raise typer.Exit(1)
    for server in read_status(app).servers:
        print(f"{server.state} {server.address}")


def _settings(arguments: list[str]) -> dict[str, Any]:
    """Return the settings among the options of `serve`, checked.

    Raises:
        WrongSettings: One is wrong.
    """
    from .main import app

    command: Any = typer.main.get_command(app)
    context = command.commands["serve"].make_context("resnet50-server serve", list(arguments))
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in context.params.items()
        if value is not None and value != [] and value != ()
    }
    FLAGS.read(given)
    return given


def _connect(address: str) -> None:
    """Connect to the cluster, or exit with status 1 and the reason."""
    from resnet50_server.ray.cluster import Unreachable, connect

    try:
        connect(address)
    except Unreachable as error:
        print(f"resnet50-server: {error}, or name another one with --address", file=sys.stderr)
        raise typer.Exit(1) from error


def _print_status(app: str, found: AppStatus) -> None:
    replicas = ", ".join(f"{number} {state}" for state, number in found.replicas.items() if number)
    print(f"{app}: {found.state}{replicas and f', replicas: {replicas}'}")
    if found.message:
        print(found.message)
    for one in found.servers:
        reason = f": {one.reason}" if one.reason else ""
        print(f"{one.state} {one.address}, replica {one.replica}, process {one.pid}{reason}")
    for failed in found.failed_starts:
        print(f"failed {failed.age_s:.0f} s ago on {failed.node}: {failed.reason}")
