"""The groups of the network: addresses, TLS, connections and bearer tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import NoDecode

from resnet50_settings.groups import Group


class Network(Group):
    """Addresses, TLS and HTTP/2 connections."""

    title = "Network and TLS"

    listen: Annotated[
        list[str],
        NoDecode,
        Field(
            min_length=1,
            description="Address to listen on: host:port, host:0 (a free port, printed at the"
            " start) or unix:PATH. Repeat for several.",
        ),
    ] = ["127.0.0.1:50051"]
    tls_cert: Annotated[
        Path | None,
        Field(
            description="PEM file with the server's certificate chain. Enables TLS on all TCP"
            " addresses. Reloaded when it changes."
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        Field(description="PEM file with the private key of --tls-cert, without a passphrase."),
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(
            description="PEM file with the CAs of client certificates. Enables mTLS: clients"
            " without a certificate from one of them are rejected."
        ),
    ] = None
    allow_plaintext: Annotated[
        bool,
        Field(
            description="Allow unencrypted connections on non-loopback addresses. Traffic can be"
            " read and modified in transit."
        ),
    ] = False
    listen_while_loading: Annotated[
        bool,
        Field(
            description="Listen while variants load: health checks report NOT_SERVING, requests are"
            " rejected. Turn it off for load balancers without health checks."
        ),
    ] = True
    oip: Annotated[
        bool,
        Field(
            description="Serve the Open Inference Protocol v2 on the same addresses as well, for"
            " clients of Triton and KServe."
        ),
    ] = False
    oip_model_name: Annotated[
        str,
        Field(
            min_length=1,
            description="Model name of the default variant in the Open Inference Protocol; every"
            " variant has its own name, too.",
        ),
    ] = "resnet50"
    http_listen: Annotated[
        str | None,
        Field(
            description="Address of an HTTP gateway, host:port or host:0 (a free port, printed at"
            " the start): a process of its own that is restarted when it ends. Needs the extra"
            " `http`; its settings are environment variables RESNET50_GATEWAY_*. Default: disabled."
        ),
    ] = None
    max_connections: Annotated[
        int, Field(ge=1, lt=2**31, description="Maximum open connections per listening address.")
    ] = 1024
    max_calls_per_connection: Annotated[
        int,
        Field(
            ge=1,
            lt=2**31,
            description="Maximum concurrent calls per connection; further calls queue in the"
            " client.",
        ),
    ] = 1000
    max_connection_age_s: Annotated[
        float,
        Field(
            ge=0,
            le=10**6,
            description="Close connections of this age, in seconds, so that clients balance their"
            " load again; calls in flight get `max_connection_age_grace_s` more. 0: never.",
        ),
    ] = 0.0
    max_connection_age_grace_s: Annotated[
        float,
        Field(
            ge=1,
            le=10**6,
            description="Seconds that calls in flight have when their connection reaches its"
            " maximum age; calls that still run are then ended with UNAVAILABLE, which the SDK"
            " retries, and streams, which it resumes at another server.",
        ),
    ] = 60.0
    connection_idle_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            le=10**6,
            description="Idle timeout: close connections without calls for this long, in seconds."
            " 0: never.",
        ),
    ] = 600.0
    keepalive_s: Annotated[
        float,
        Field(
            ge=1,
            le=10**6,
            description="HTTP/2 keepalive: idle seconds before a PING is sent; the peer must answer"
            " within 20 s.",
        ),
    ] = 60.0


class Authentication(Group):
    """Bearer tokens."""

    title = "Authentication"

    tokens_file: Annotated[
        Path | None,
        Field(
            description="TOML file with hashes of bearer tokens, written by `resnet50-server tokens"
            " new`. Every call then needs a token. Reloaded when it changes."
        ),
    ] = None
