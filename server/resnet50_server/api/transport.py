"""What gRPC is told of connections and messages."""

from __future__ import annotations

import grpc

from resnet50_server.settings import Settings

from .listeners import HANDSHAKE_TIMEOUT_MS

# After a connection's age is reached: seconds for its calls to end.
CONNECTION_GRACE_S = 60
KEEPALIVE_TIMEOUT_S = 20
MAX_METADATA_BYTES = 16 * 1024
# What gRPC takes of a call's messages before somebody reads them.
UNREAD_BYTES = 128 * 1024
# gRPC's word for never.
GRPC_NEVER_MS = 2**31 - 1

# The first gRPC whose decompression stops at the limit of a message.
BOUNDED_COMPRESSION = (1, 84)


def options(settings: Settings) -> list[tuple[str, int]]:
    """Return the options of the gRPC server."""

    def ms(seconds: float) -> int:
        return int(seconds * 1000) if seconds else GRPC_NEVER_MS

    return [
        *_compression(grpc.__version__),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", ms(settings.connection_idle_timeout_s)),
        ("grpc.max_connection_age_ms", ms(settings.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", ms(CONNECTION_GRACE_S)),
        # Two servers on one port would share its calls by chance; let the second fail instead.
        ("grpc.so_reuseport", 0),
        # A peer that vanished without a word is noticed.
        ("grpc.keepalive_time_ms", ms(settings.keepalive_s)),
        ("grpc.keepalive_timeout_ms", ms(KEEPALIVE_TIMEOUT_S)),
        # Without it a ping has a minute all the same (gRPC 1.85; not in its documents).
        ("grpc.http2.ping_timeout_ms", ms(KEEPALIVE_TIMEOUT_S)),
        ("grpc.keepalive_permit_without_calls", 1),
        # One that pings more often than this, again and again, is sent away.
        # By itself gRPC adapts this to the connection, and then keeps up to 50 MB for a call that
        # nobody reads (docs/adr/0023-memory-bound.md).
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.enable_channelz", int(settings.channelz)),
    ]


def _compression(version: str) -> list[tuple[str, int]]:
    """Return what keeps compressed messages within `max_message_bytes`.

    gRPC stops expanding at the limit since 1.84; older ones expand first and look afterwards, so
    they are to take no compressed message (docs/adr/0012-compressed-messages.md).
    """
    release = tuple(int(part) for part in version.split(".")[:2])
    if release >= BOUNDED_COMPRESSION:
        return []
    return [("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression)]
