"""Listening addresses: channel options, TLS credentials, binding."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from resnet50_server.errors import UnusableSetting
from resnet50_server.settings import Settings

if TYPE_CHECKING:
    from resnet50_server.auth.tls import TlsBundle, TlsReloader

log = logging.getLogger(__name__)

KEEPALIVE_TIMEOUT_S = 20
# Limit for the TLS handshake and first HTTP/2 frame of a connection; gRPC's default is two minutes,
# and each such connection takes memory.
HANDSHAKE_TIMEOUT_MS = 10_000
MAX_METADATA_BYTES = 16 * 1024
# Bytes of a call's messages that gRPC buffers before the server reads them.
UNREAD_BYTES = 128 * 1024
# gRPC's value for "never".
GRPC_NEVER_MS = 2**31 - 1
# The first gRPC release whose decompression stops at the message size limit.
BOUNDED_COMPRESSION = (1, 84)
# How to fix an address that cannot be bound.
BIND_HINTS = {
    errno.EADDRINUSE: "stop the process that listens there, or set another address with --listen",
    errno.EADDRNOTAVAIL: "use an address of this machine, or 0.0.0.0 or [::] for all",
    errno.EACCES: "ports below 1024 need extra privileges, a Unix socket a writable folder",
    errno.ENOENT: "create the socket's folder first",
}
DEFAULT_HINT = "set another address with --listen"


def server_options(settings: Settings) -> list[tuple[str, int]]:
    """Return the channel options of the gRPC server."""

    def ms(seconds: float) -> int:
        return int(seconds * 1000) if seconds else GRPC_NEVER_MS

    return [
        *compression_options(grpc.__version__),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", ms(settings.connection_idle_timeout_s)),
        ("grpc.max_connection_age_ms", ms(settings.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", ms(settings.max_connection_age_grace_s)),
        # Two servers on one port would share its calls at random; make the second fail instead.
        ("grpc.so_reuseport", 0),
        # Detects peers that vanished without closing the connection.
        ("grpc.keepalive_time_ms", ms(settings.keepalive_s)),
        ("grpc.keepalive_timeout_ms", ms(KEEPALIVE_TIMEOUT_S)),
        # Otherwise a ping may take a minute regardless (gRPC 1.85; undocumented).
        ("grpc.http2.ping_timeout_ms", ms(KEEPALIVE_TIMEOUT_S)),
        ("grpc.keepalive_permit_without_calls", 1),
        # By default gRPC adapts the window to the connection, and then buffers up to 50 MB for a
        # call that is not read (docs/adr/0023-memory-bound.md).
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
        # Connections that ping more often than this, repeatedly, are closed.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.enable_channelz", int(settings.channelz)),
    ]


def compression_options(version: str) -> list[tuple[str, int]]:
    """Return the options that bound decompressed messages by `max_message_bytes`.

    gRPC stops decompressing at the limit since 1.84; older releases decompress first and check
    afterwards, so they accept no compressed message (docs/adr/0012-compressed-messages.md).
    """
    release = tuple(int(part) for part in version.split(".")[:2])
    if release >= BOUNDED_COMPRESSION:
        return []
    return [("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression)]


def certificates_of(settings: Settings) -> TlsReloader | None:
    """Load the TLS files of the settings; None without TLS.

    Raises:
        UnusableSetting: A file of `tls_cert`, `tls_key` or `tls_client_ca` is invalid.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    # Not at the top: servers without TLS start without cryptography.
    from resnet50_server.auth.tls import TlsReloader

    return TlsReloader(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


async def listen(
    server: grpc.aio.Server, settings: Settings, certificates: TlsReloader | None
) -> list[str]:
    """Bind the addresses of `settings.listen`: TCP with TLS if there are certificates.

    Unix sockets are always plaintext: nothing leaves the machine, and file permissions control who
    may connect.

    Args:
        server: Not started yet.
        settings: The addresses, and whether plaintext may cross the network.
        certificates: For TLS; None for plaintext.

    Returns:
        The addresses, with the ports that were chosen.

    Raises:
        UnusableSetting: An address that other machines can reach would be plaintext.
        OSError: An address cannot be bound.
    """
    if certificates is None:
        for address in settings.listen:
            if not await is_local(address):
                _check_plaintext(address, settings)
    return [_bind(server, address, certificates) for address in settings.listen]


async def is_local(address: str) -> bool:
    """Return whether an address is reachable from this machine only.

    Args:
        address: unix:PATH or host:port. A host name is local if everything that it resolves to is;
            one that does not resolve is not.
    """
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return _is_loopback(host)
    except ValueError:
        pass  # not an IP address, so a name
    try:
        # gRPC resolves it once more when it binds it; an attacker who could make the two differ
        # would already control this machine's name resolution.
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(_is_loopback(str(place[0])) for *_, place in found)


def _is_loopback(literal: str) -> bool:
    address = ipaddress.ip_address(literal.partition("%")[0])  # without IPv6's zone
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _check_plaintext(address: str, settings: Settings) -> None:
    if not settings.allow_plaintext:
        raise UnusableSetting(
            "listen",
            f"{address} is reachable from other machines and would be plaintext; set tls_cert and"
            " tls_key, or allow_plaintext if anyone on the network path may read and change the"
            " traffic",
        )
    tokens = ", tokens included" if settings.tokens_file is not None else ""
    log.warning(
        "listen: %s is plaintext: anyone on the network path can read the traffic%s",
        address,
        tokens,
    )


def _bind(server: grpc.aio.Server, address: str, certificates: TlsReloader | None) -> str:
    """Bind an address; return it with the port that was chosen."""
    try:
        if address.startswith("unix:"):
            _require_free_socket(address.removeprefix("unix:"))
            server.add_insecure_port(address)
            return address
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(certificates))
    except RuntimeError as error:  # gRPC does not give the reason
        raise OSError(f"listen: cannot listen on {address}: {_reason(address)}") from error
    return f"{address.rpartition(':')[0]}:{port}"


def _reason(address: str) -> str:
    """Return why an address cannot be bound, and how to fix it."""
    path = address.removeprefix("unix:")
    try:
        if path != address:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(path)
        else:
            host, _, port = address.rpartition(":")
            with socket.create_server(
                (host.strip("[]"), int(port)), family=_family(host.strip("[]"))
            ):
                pass
    except OSError as error:
        # Not the exception's text: socket.create_server extends it.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or error
        return f"{reason}; {BIND_HINTS.get(number, DEFAULT_HINT)}"
    return DEFAULT_HINT


def _family(host: str) -> socket.AddressFamily:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def _credentials(certificates: TlsReloader) -> grpc.ServerCredentials:
    """Return credentials for one address that follow certificate changes."""
    first = certificates.current()
    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        # None means no change; the type stubs lack that.
        _certificate_fetcher(certificates, first),  # type: ignore[arg-type]
        require_client_authentication=first.client_ca is not None,
    )


def _certificate_fetcher(
    certificates: TlsReloader, known: TlsBundle
) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
    """Return the function that gRPC calls, on its own thread, before each handshake.

    gRPC keeps the last configuration per address, so changes are tracked per address too.
    """

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal known
        current = certificates.current()
        if current is known:
            return None
        known = current
        return _configuration(current)

    return fetch


def _configuration(material: TlsBundle) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.client_ca
    )


def _require_free_socket(path: str) -> None:
    """Raise `OSError` if a server may listen there: binding would replace its socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a stopped server accepts no connection
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return  # no socket, or left behind by a server that died
        except BlockingIOError:
            pass
        except OSError as error:
            raise OSError(
                f"listen: cannot listen on unix:{path}: {error.strerror or error}, so it"
                " is unknown whether another server does; set another path with --listen"
            ) from error
    raise OSError(
        f"listen: cannot listen on unix:{path}: another server does; stop it, or set another path"
        " with --listen"
    )
