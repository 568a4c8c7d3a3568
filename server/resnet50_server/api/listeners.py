"""Where the server listens, and in what: TLS, or clear text where nobody else can read it."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Callable

import grpc

from resnet50_server.auth.tls import TlsBundle, TlsReloader
from resnet50_server.errors import UnusableSetting
from resnet50_server.settings import Settings

log = logging.getLogger(__name__)

# How long a new connection may take for its TLS handshake and its first HTTP/2 frame; a gRPC
# server by itself waits for two minutes, and each such connection holds memory.
HANDSHAKE_TIMEOUT_MS = 10_000
# What to do about an address that cannot be bound.
ADVICE = {
    errno.EADDRINUSE: "stop the process that listens there, or name another address with --listen",
    errno.EADDRNOTAVAIL: "name an address of this machine, or 0.0.0.0 or [::] for all",
    errno.EACCES: "ports below 1024 need a right of their own, a socket a folder to write to",
    errno.ENOENT: "make the socket's folder first",
}
OTHERWISE = "name another address with --listen"


def certificates_of(settings: Settings) -> TlsReloader | None:
    """Return the files that TLS needs; None without TLS.

    Raises:
        UnusableSetting: A file of `tls_cert`, `tls_key` or `tls_client_ca` is not sound.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return TlsReloader(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


async def listen(
    server: grpc.aio.Server, settings: Settings, certificates: TlsReloader | None
) -> list[str]:
    """Bind the addresses of `settings.listen`: TCP in TLS if there are certificates.

    Unix sockets are always clear text: nothing leaves the machine, and their files' permissions
    say who may connect.

    Args:
        server: What listens; not started yet.
        settings: Where, and whether clear text may be heard by other machines.
        certificates: What TLS needs; None for clear text.

    Returns:
        The addresses, with the ports that were chosen.

    Raises:
        UnusableSetting: An address that other machines reach would be in clear text.
        OSError: An address cannot be listened on.
    """
    if certificates is None:
        for address in settings.listen:
            if not await is_local(address):
                _check_cleartext(address, settings)
    return [_bind(server, address, certificates) for address in settings.listen]


async def is_local(address: str) -> bool:
    """Return whether only this machine reaches an address.

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
        # gRPC resolves it once more when it binds it. Who could make the two differ rules the names
        # of this machine.
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(_is_loopback(str(place[0])) for *_, place in found)


def _is_loopback(literal: str) -> bool:
    address = ipaddress.ip_address(literal.partition("%")[0])  # without IPv6's zone
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _check_cleartext(address: str, settings: Settings) -> None:
    if not settings.allow_plaintext:
        raise UnusableSetting(
            "listen",
            f"{address} may be reached by other machines, and would be in clear text; set tls_cert"
            " and tls_key, or allow_plaintext if everyone on the way may read and change what is"
            " sent",
        )
    tokens = "; tokens too" if settings.tokens_file is not None else ""
    log.warning("listen: %s is in clear text: others on the way can read it all%s", address, tokens)


def _bind(server: grpc.aio.Server, address: str, certificates: TlsReloader | None) -> str:
    """Bind an address; return it with the port that was chosen."""
    try:
        if address.startswith("unix:"):
            _refuse_used_socket(address.removeprefix("unix:"))
            server.add_insecure_port(address)
            return address
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(certificates))
    except RuntimeError as error:  # gRPC does not say why
        raise OSError(f"listen: cannot listen on {address}: {_reason(address)}") from error
    return f"{address.rpartition(':')[0]}:{port}"


def _reason(address: str) -> str:
    """Find out why an address cannot be bound, and what to do."""
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
        # Not the error's own text: socket.create_server adds to it.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or error
        return f"{reason}; {ADVICE.get(number, OTHERWISE)}"
    return OTHERWISE


def _family(host: str) -> socket.AddressFamily:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def _credentials(certificates: TlsReloader) -> grpc.ServerCredentials:
    """Return credentials that take new certificates over as they come, for one address."""
    first = certificates.current()
    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        # None means no change; the stubs do not know that.
        _news(certificates, first),  # type: ignore[arg-type]
        require_client_authentication=first.client_ca is not None,
    )


def _news(
    certificates: TlsReloader, known: TlsBundle
) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
    """Return what gRPC calls, on a thread of its own, before each handshake.

    gRPC keeps what it was told last, for each address by itself; so each knows by itself what is
    news to it.
    """

    def news() -> grpc.ServerCertificateConfiguration | None:
        nonlocal known
        current = certificates.current()
        if current is known:
            return None
        known = current
        return _configuration(current)

    return news


def _configuration(material: TlsBundle) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.client_ca
    )


def _refuse_used_socket(path: str) -> None:
    """Raise `OSError` if a server may listen there: binding would take its socket away."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # one that stands still takes no calls
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return  # nothing there, or what a server that died has left behind
        except BlockingIOError:
            pass
        except OSError as error:
            raise OSError(
                f"listen: cannot listen on unix:{path}: {os.strerror(error.errno or 0)}, so nobody"
                " knows whether another server does; name another path with --listen"
            ) from error
    raise OSError(
        f"listen: cannot listen on unix:{path}: another server does; stop it, or name another path"
        " with --listen"
    )
