"""The gateway's settings: name, type, default, limits and help text of each, declared once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from resnet50_metrics.scrape import Endpoint
from resnet50_settings.groups import Group

from .addresses import inherited_file, is_host_and_port, is_local

ENV_PREFIX = "RESNET50_GATEWAY_"


class Network(Group):
    """Addresses, TLS and cross-origin requests."""

    title = "Listening"

    listen: Annotated[
        str,
        Field(
            description="Address to listen on: host:port, or host:0 (a free port, printed at the"
            " start)."
        ),
    ] = "127.0.0.1:8080"
    tls_cert: Annotated[
        Path | None,
        Field(
            description="PEM file with the gateway's certificate chain. Enables HTTPS. Reloaded"
            " when it changes."
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        Field(description="PEM file with the private key of --tls-cert, without a passphrase."),
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(
            description="PEM file with the CAs of client certificates. Clients without a"
            " certificate from one of them are rejected. Read at the start only."
        ),
    ] = None
    allow_plaintext: Annotated[
        bool,
        Field(
            description="Allow plain HTTP on addresses that other machines can reach. Traffic can"
            " be read and modified in transit."
        ),
    ] = False
    cors_origin: Annotated[
        list[str],
        NoDecode,
        Field(
            description="Origin whose pages may call the gateway from a browser, such as"
            " https://app.example. Repeat for several. Default: none."
        ),
    ] = []
    console: Annotated[bool, Field(description="Serve the console at /console/.")] = True


class Servers(Group):
    """The gRPC servers that calls are forwarded to."""

    title = "Servers"

    server: Annotated[
        list[str],
        NoDecode,
        Field(
            min_length=1,
            description="gRPC server to forward to: host:port or unix:PATH. Repeat for several;"
            " calls are balanced over them.",
        ),
    ] = ["127.0.0.1:50051"]
    server_tls: Annotated[
        bool, Field(description="Connect to the servers with TLS and the system's CAs.")
    ] = False
    server_ca: Annotated[
        Path | None,
        Field(description="PEM file with the CAs of the servers' certificates. Implies TLS."),
    ] = None
    server_cert: Annotated[
        Path | None,
        Field(description="PEM file with the gateway's client certificate, for servers with mTLS."),
    ] = None
    server_key: Annotated[
        Path | None, Field(description="PEM file with the private key of --server-cert.")
    ] = None
    server_name: Annotated[
        str | None,
        Field(description="Name in the servers' certificates, if it is not that of the address."),
    ] = None
    weaviate_variant: Annotated[
        str | None,
        Field(
            description="Variant of the vectors for Weaviate (POST /vectors). Default: the servers'"
            " default variant."
        ),
    ] = None
    metrics: Annotated[
        list[str],
        NoDecode,
        Field(
            description="URL of a server's Prometheus metrics, such as http://127.0.0.1:9464/"
            "metrics, for the console's charts. Repeat for several. Default: none."
        ),
    ] = []


class Limits(Group):
    """How much the gateway accepts before it asks a server."""

    title = "Limits"

    max_connections: Annotated[
        int, Field(ge=1, description="Maximum open connections; further ones are closed.")
    ] = 1024
    max_requests: Annotated[
        int, Field(ge=1, description="Maximum requests in flight; further ones get 503.")
    ] = 1024
    max_requests_per_client: Annotated[
        int, Field(ge=1, description="Like --max-requests, per IP address.")
    ] = 256
    max_streams: Annotated[
        int, Field(ge=1, description="Maximum open WebSockets; further ones are rejected.")
    ] = 64
    max_streams_per_client: Annotated[
        int, Field(ge=1, description="Like --max-streams, per IP address.")
    ] = 16
    max_header_bytes: Annotated[
        int,
        Field(ge=1024, le=2**20, description="Maximum size of the URL and headers of a request."),
    ] = 16 * 2**10
    max_body_bytes: Annotated[
        int,
        Field(ge=1024, description="Maximum size of a request's body, in bytes."),
    ] = 64 * 2**20
    max_json_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="Maximum size of a JSON body, in bytes: parsing takes several times as"
            " much memory.",
        ),
    ] = 16 * 2**20
    max_bodies_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="Memory for all bodies in flight, in bytes; further requests get 503.",
        ),
    ] = 256 * 2**20
    max_message_bytes: Annotated[
        int,
        Field(
            ge=1024,
            lt=2**31,
            description="Maximum size of a gRPC message to a server, as the servers' own"
            " --max-message-bytes: larger images are uploaded in chunks, larger frames rejected.",
        ),
    ] = 4 * 2**20
    max_images: Annotated[
        int, Field(ge=1, le=4096, description="Maximum images of a batch request.")
    ] = 128


class Timeouts(Group):
    """Time limits."""

    title = "Timeouts"

    header_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Time limit for a TLS handshake, and for the headers of a request, in"
            " seconds.",
        ),
    ] = 10.0
    body_idle_timeout_s: Annotated[
        float, Field(gt=0, description="Maximum pause within a body, in seconds.")
    ] = 10.0
    body_timeout_s: Annotated[
        float, Field(gt=0, description="Time limit for a whole body, in seconds.")
    ] = 120.0
    stream_idle_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum time between the messages of a WebSocket, in seconds; then it is"
            " closed.",
        ),
    ] = 300.0
    keep_alive_s: Annotated[
        float,
        Field(gt=0, description="Idle connections are closed after this long, in seconds."),
    ] = 60.0
    send_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Time limit for a client to take a response; then its connection is closed,"
            " in seconds.",
        ),
    ] = 30.0
    timeout_s: Annotated[
        float,
        Field(
            gt=0,
            le=10**6,
            description="Deadline of a call whose client names none (X-Timeout-Ms), in seconds.",
        ),
    ] = 60.0
    drain_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            description="Graceful shutdown: time limit for requests in flight to finish after"
            " SIGTERM, in seconds.",
        ),
    ] = 30.0


class Observability(Group):
    """Logs and metrics."""

    title = "Observability"

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="Minimum level of log messages. debug logs a line per request."),
    ] = "info"
    metrics_listen: Annotated[
        str | None,
        Field(
            description="Address of the gateway's own /metrics over plaintext HTTP, without a"
            " token: host:port, or host:0 (a free port, printed at the start). Default: disabled."
        ),
    ] = None


class Settings(Network, Servers, Limits, Timeouts, Observability, BaseSettings):
    """All options of `resnet50-gateway`.

    Each is a flag (--max-body-bytes) and an environment variable (RESNET50_GATEWAY_MAX_BODY_BYTES;
    lists are separated by commas). Flags override the environment.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        env_ignore_empty=True,
        frozen=True,
        allow_inf_nan=False,  # clocks, counters and other processes take finite numbers
    )

    @property
    def tls_to_servers(self) -> bool:
        """Return whether calls to the servers are encrypted."""
        return self.server_tls or self.server_ca is not None or self.server_cert is not None

    @field_validator("server", "cors_origin", "metrics", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Split the commas of an environment value."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("listen")
    @classmethod
    def _listen_address(cls, address: str) -> str:
        if not is_host_and_port(address) and inherited_file(address) is None:
            raise ValueError(f"{address!r} is not host:port, such as 127.0.0.1:8080")
        return address

    @field_validator("metrics_listen")
    @classmethod
    def _metrics_address(cls, address: str | None) -> str | None:
        if address is not None and not is_host_and_port(address):
            raise ValueError(f"{address!r} is not host:port, such as 127.0.0.1:9465")
        return address

    @field_validator("server")
    @classmethod
    def _server_addresses(cls, addresses: list[str]) -> list[str]:
        for address in addresses:
            if not is_host_and_port(address) and address.removeprefix("unix:") in ("", address):
                raise ValueError(f"{address!r} is neither host:port nor unix:PATH")
        return addresses

    @field_validator("metrics")
    @classmethod
    def _metrics_urls(cls, urls: list[str]) -> list[str]:
        for url in urls:
            try:
                Endpoint.of(url)
            except ValueError as error:
                raise ValueError(str(error).removeprefix("--metrics: ")) from None
        return urls

    @field_validator("cors_origin")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            scheme, separator, host = origin.partition("://")
            if scheme not in ("http", "https") or not separator or not host or "/" in host:
                raise ValueError(f"{origin!r} is no origin, such as https://app.example")
        return origins

    @model_validator(mode="after")
    def _coherent(self) -> Settings:
        for one, other in (("tls_cert", "tls_key"), ("server_cert", "server_key")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one}: needs {other} as well, and the other way round")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca: needs tls_cert and tls_key")
        exposed = inherited_file(self.listen) is None and not is_local(self.listen)
        if self.tls_cert is None and not self.allow_plaintext and exposed:
            raise ValueError(
                f"listen: {self.listen} is reachable from other machines and would be plain HTTP;"
                " set tls_cert and tls_key, or allow_plaintext if anyone on the network path may"
                " read and change the traffic"
            )
        return self


def unknown_environment() -> list[str]:
    """Return the environment variables with the gateway's prefix that are no setting."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
    )
