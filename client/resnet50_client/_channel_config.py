"""Settings of a client's gRPC channels: options, interceptors, compression, number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import grpc

from ._arguments import check_choice, check_count
from ._version import __version__

Compression: TypeAlias = Literal["gzip", "deflate"]
"""Compression of requests."""
Option: TypeAlias = tuple[str, int | str]
DISTRIBUTION = "resnet50-serving"
# A ping is sent after this idle time. If TCP does not deliver data within 8 s, the connection is
# closed (TCP_USER_TIMEOUT): after 23 s calls over a dead link move to another server. Servers
# reject clients that ping more often than every 10 s.
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 15, 8
CONNECT_TIMEOUT_S = 5
# The response to a ping may take longer: on a slow link it queues behind images being sent.
PING_TIMEOUT_S = 20

# Options that an argument of the client sets, by its name.
_ARGUMENTS = {
    "grpc.ssl_target_name_override": "server_name",
    "grpc.default_compression_algorithm": "compression",
}
_ALGORITHMS = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
# gRPC's integers are of C.
_LEAST, _MOST = -(2**31), 2**31 - 1
_SERVICE_CONFIG = "grpc.service_config"
# One class for each kind of call.
_KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


@dataclass(frozen=True, eq=False, repr=False)
class ChannelConfig:
    """Settings of channels, which all clients of `with_options` share.

    Attributes:
        options: gRPC channel options; they precede the SDK's.
        interceptors: Interceptors of `grpc` or of `grpc.aio`, the first one outermost.
        compression: Compression of requests; None for none.
        wait_for_ready: Whether calls wait for a connection instead of failing.
        connections: Number of channels, each with a connection to every server.
    """

    options: tuple[Option, ...] = ()
    interceptors: tuple[Any, ...] = ()
    compression: Compression | None = None
    wait_for_ready: bool = False
    connections: int = 1

    @classmethod
    def of(
        cls,
        options: Mapping[str, int | str] | None = None,
        interceptors: Sequence[Any] = (),
        compression: Compression | None = None,
        wait_for_ready: bool = False,
        connections: int = 1,
    ) -> ChannelConfig:
        """Check a client's arguments.

        Raises:
            ValueError: One is invalid.
        """
        if options is not None and not isinstance(options, Mapping):
            raise ValueError(f"channel_options: is {options!r}, must map names to values")
        for name, value in (options or {}).items():
            _check_option(name, value)
        if compression is not None:
            check_choice("compression", compression, get_args(Compression))
        if not isinstance(wait_for_ready, bool):
            raise ValueError(f"wait_for_ready: is {wait_for_ready!r}, must be True or False")
        if wait_for_ready and _SERVICE_CONFIG in (options or {}):
            raise ValueError(
                f"wait_for_ready: channel_options has {_SERVICE_CONFIG}, which replaces it; set"
                " waitForReady there"
            )
        if isinstance(interceptors, str) or not isinstance(interceptors, Sequence):
            raise ValueError(f"interceptors: is {interceptors!r}, must be a list")
        check_count("connections", connections, 1, "1 or more")
        given = tuple(dict(options or {}).items())
        return cls(given, tuple(interceptors), compression, wait_for_ready, connections)

    def check_interceptors(self, module: Any) -> None:
        """Check that all interceptors are of `grpc` or of `grpc.aio`.

        Args:
            module: That module.

        Raises:
            TypeError: One is not.
        """
        allowed = tuple(getattr(module, f"{kind}ClientInterceptor") for kind in _KINDS)
        for one in self.interceptors:
            if not isinstance(one, allowed):
                raise TypeError(
                    f"interceptors: {type(one).__name__} is not an interceptor of"
                    f" {module.__name__}, e.g. {module.__name__}.UnaryUnaryClientInterceptor"
                )

    def options_over(self, defaults: Sequence[Option]) -> list[Option]:
        """Return the options of a channel: `defaults`, with those of this configuration."""
        options = dict(defaults)
        if self.wait_for_ready:
            import json  # for this rare option only

            config = json.loads(str(options[_SERVICE_CONFIG]))
            config["methodConfig"] = [{"name": [{}], "waitForReady": True}]
            options[_SERVICE_CONFIG] = json.dumps(config)
        if self.connections > 1:  # else gRPC's channels would share their connections
            options["grpc.use_local_subchannel_pool"] = 1
        return list((options | dict(self.options)).items())

    def algorithm(self) -> Any:
        """Return gRPC's name of the compression; None for none."""
        return None if self.compression is None else _ALGORITHMS[self.compression]


def _check_option(name: object, value: object) -> None:
    if not (isinstance(name, str) and name.startswith("grpc.")):
        raise ValueError(f'channel_options: the name {name!r} must begin with "grpc."')
    if name in _ARGUMENTS:
        raise ValueError(f"channel_options: {name} is set by the argument {_ARGUMENTS[name]}")
    if not isinstance(value, (int, str)):
        raise ValueError(f"channel_options: {name} is {value!r}, must be an integer or text")
    if isinstance(value, int) and not _LEAST <= value <= _MOST:
        raise ValueError(f"channel_options: {name} is {value}, must be {_LEAST} to {_MOST}")


def channel_options() -> list[Option]:
    """Return the SDK's channel options: round robin, keepalive, no gRPC retries."""
    return [
        (_SERVICE_CONFIG, '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        ("grpc.service_config_disable_resolution", 1),  # no TXT lookups for service configs
        # gRPC would send even calls to localhost through an http_proxy.
        ("grpc.enable_http_proxy", 0),
        # The SDK retries, within the deadline (docs/adr/0026-retries-in-the-sdk.md).
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", -1),  # the server's limit applies
        ("grpc.primary_user_agent", f"{DISTRIBUTION}/{__version__}"),
        # Reconnect soon to a server that restarts, or whose address changes.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Time limit of a connection attempt. gRPC's default is 20 s; on Linux the keepalive's
        # TCP_USER_TIMEOUT ends it after 8 s. gRPC resolves a name again only when the attempt has
        # failed, so keepalive and attempt together have to take less than a call's deadline.
        ("grpc.min_reconnect_backoff_ms", 1000 * CONNECT_TIMEOUT_S),
        # Detect a peer that disappeared, also between calls.
        ("grpc.keepalive_time_ms", 1000 * KEEPALIVE_S),
        ("grpc.keepalive_timeout_ms", 1000 * KEEPALIVE_TIMEOUT_S),
        # Without this the timeout of a ping is a minute (gRPC 1.85; undocumented).
        ("grpc.http2.ping_timeout_ms", 1000 * PING_TIMEOUT_S),
        ("grpc.keepalive_permit_without_calls", 1),
        # Without this only two pings are sent while a call waits, then one per minute.
        ("grpc.http2.max_pings_without_data", 0),
    ]
