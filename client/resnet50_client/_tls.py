"""CA and client certificates for gRPC's TLS, reloaded when their files change.

gRPC's Python API reads certificates once, when a channel is created; `channels.py` creates a new
channel when `CertificateSources.current` returns other ones.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import grpc

from ._forks import tell_after_fork
from ._watched_file import WatchedFile

Pem: TypeAlias = str | os.PathLike[str] | bytes
"""A path, or the bytes of a PEM file."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Certificates:
    """Certificates and key in PEM.

    Attributes:
        ca: CA certificates to trust; None for gRPC's own.
        cert: The client's certificate chain.
        key: Its private key.
    """

    ca: bytes | None = field(default=None, repr=False)
    cert: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)

    def for_channel(self) -> grpc.ChannelCredentials:
        """Return gRPC's channel credentials."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


class CertificateSources:
    """Sources of certificates: files or bytes. Thread-safe.

    Args:
        ca: CA certificates to trust; None for gRPC's own.
        cert: The client's certificate chain.
        key: Its unencrypted private key.

    Raises:
        ValueError: One is invalid; the message names the argument.
        OSError: A file cannot be read; the message names the argument.
    """

    def __init__(
        self, ca: Pem | None = None, cert: Pem | None = None, key: Pem | None = None
    ) -> None:
        given = {"ca": ca, "cert": cert, "key": key}
        for name, one in given.items():
            if isinstance(one, str) and "-----BEGIN" in one:  # an error would show it as a path
                raise ValueError(f"{name}: is PEM in a str, which is for paths; pass it as bytes")
        self._sources: dict[str, WatchedFile | bytes] = {
            name: one if isinstance(one, bytes) else WatchedFile(one, name)
            for name, one in given.items()
            if one is not None
        }
        self._lock = threading.Lock()
        self._current = Certificates(**self._read())
        self._check(self._current)
        self._refused: Certificates | None = None
        tell_after_fork(self)

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments that were given, of `ca`, `cert` and `key`."""
        return tuple(self._sources)

    def current(self) -> Certificates:
        """Return the current certificates: the same object as before if nothing changed.

        While files are unreadable or do not match, because they are being replaced, the previous
        certificates are returned.
        """
        with self._lock:
            try:
                found = Certificates(**self._read())
                if found in (self._current, self._refused):
                    return self._current
                self._check(found)
                if found == Certificates(**self._read()):  # unchanged during the check
                    self._current = found
                    log.debug("changed %s: used for new connections", ", ".join(self._sources))
            except OSError as error:
                log.debug("certificates cannot be read, the previous ones are used: %s", error)
            except ValueError as error:
                self._refused = found
                log.warning("changed certificates are not used: %s", error)
            return self._current

    def after_fork(self) -> None:
        """Create a new lock: another thread may have held the old one."""
        self._lock = threading.Lock()

    def _read(self) -> Mapping[str, bytes]:
        return {
            name: one.content() if isinstance(one, WatchedFile) else one
            for name, one in self._sources.items()
        }

    def _check(self, certificates: Certificates) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with contextlib.suppress(ssl.SSLError):
            context.set_ciphers("ALL:@SECLEVEL=0")  # servers decide on key strength
        if certificates.ca is not None:
            try:
                context.load_verify_locations(cadata=certificates.ca.decode("ascii", "ignore"))
            except (ssl.SSLError, ValueError) as error:
                raise ValueError(
                    f"ca: {self._origin('ca')} contains no PEM certificates"
                ) from error
        for name, content in (("cert", certificates.cert), ("key", certificates.key)):
            label = b"CERTIFICATE-----" if name == "cert" else b"PRIVATE KEY-----"
            if content is not None and label not in content:
                kind = "certificate" if name == "cert" else "private key"
                raise ValueError(f"{name}: {self._origin(name)} contains no PEM {kind}")
        cert, key = self._sources.get("cert"), self._sources.get("key")
        if isinstance(cert, WatchedFile) and isinstance(key, WatchedFile):
            try:
                context.load_cert_chain(cert.path, key.path, _no_password)
            except ssl.SSLError as error:
                reason = error.reason or "they cannot be read"
                raise ValueError(
                    f"cert, key: {cert.path} and {key.path} do not match: {reason}"
                ) from error

    def _origin(self, name: str) -> str:
        source = self._sources[name]
        return source.path if isinstance(source, WatchedFile) else "the value"


def _no_password() -> NoReturn:
    raise ValueError("key: is encrypted, which gRPC cannot read; decrypt it first")


def advice(details: str, secure: bool) -> str:
    """Return a hint for a failed connection; "" if it is not about TLS.

    Args:
        details: gRPC's error message.
        secure: True if the client uses TLS.
    """
    if not any(words in details for words in ("backends failing", "failed to connect")):
        return ""  # there was a connection
    closed = "Socket closed" in details or "reset by peer" in details
    if not secure:
        if not closed:
            return ""
        return "; this client uses plaintext: does the server require TLS (ca, or tls)?"
    other_name = (
        "the server's certificate is for another name; see server_name, or use its own name"
    )
    for words, reason in (
        ("WRONG_VERSION_NUMBER", "the server does not use TLS, or there is a proxy in between"),
        ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is not signed by a CA in ca"),
        ("Verification Check failed", other_name),
        ("is not in peer certificate", other_name),  # of older releases
        ("Failed to create security handshaker", "gRPC cannot use ca, or cert with key"),
    ):
        if words in details:
            return f"; TLS failed: {reason}"
    if closed:
        return (
            "; the server ended the TLS handshake: does it require a client certificate (cert, key)"
            " of a CA that it trusts?"
        )
    return "; TLS failed: check ca, cert and key" if "handshake" in details.lower() else ""
