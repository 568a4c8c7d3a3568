"""Root certificates and client certificate for gRPC's TLS, reloaded when their files change.

gRPC's Python API reads certificates once, when a channel is made; `channels.py` makes another one
when `CertificateSources.current` gives others.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import grpc

from .forks import tell_after_fork
from .watched_file import WatchedFile

Pem: TypeAlias = str | os.PathLike[str] | bytes
"""A path, or the bytes of a PEM file."""


@dataclass(frozen=True)
class Certificates:
    """One state of them, in PEM.

    Attributes:
        ca: The authorities to trust; None for those that gRPC comes with.
        cert: The client's chain.
        key: Its private key.
    """

    ca: bytes | None = field(default=None, repr=False)
    cert: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)

    def for_channel(self) -> grpc.ChannelCredentials:
        """Return them as gRPC takes them."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


class CertificateSources:
    """Where certificates come from. May be used by many threads.

    Args:
        ca: Authorities to trust; None for those that gRPC comes with.
        cert: The client's chain.
        key: Its private key, not encrypted.

    Raises:
        ValueError: One is not what it should be; names it.
        OSError: A file cannot be read; names it.
    """

    def __init__(
        self, ca: Pem | None = None, cert: Pem | None = None, key: Pem | None = None
    ) -> None:
        given = {"ca": ca, "cert": cert, "key": key}
        for name, one in given.items():
            if isinstance(one, str) and "-----BEGIN" in one:  # an error would show it as a path
                raise ValueError(f"{name}: is PEM in a str, which is for paths; give it as bytes")
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
        """Which of `ca`, `cert` and `key` were given."""
        return tuple(self._sources)

    def current(self) -> Certificates:
        """Return them as they are now: the same object as before if nothing has changed.

        Files that cannot be read or do not fit together are being replaced: until they can be used,
        what was read before is.
        """
        with self._lock:
            try:
                found = Certificates(**self._read())
                if found in (self._current, self._refused):
                    return self._current
                self._check(found)
                if found == Certificates(**self._read()):  # these were what has been checked
                    self._current = found
            except OSError:
                pass
            except ValueError:
                self._refused = found
            return self._current

    def after_fork(self) -> None:
        """Make a new lock: the old one may have been held."""
        self._lock = threading.Lock()

    def _read(self) -> Mapping[str, bytes]:
        return {
            name: one.content() if isinstance(one, WatchedFile) else one
            for name, one in self._sources.items()
        }

    def _check(self, certificates: Certificates) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with contextlib.suppress(ssl.SSLError):
            context.set_ciphers("ALL:@SECLEVEL=0")  # how strong a key must be is for servers to say
        if certificates.ca is not None:
            try:
                context.load_verify_locations(cadata=certificates.ca.decode("ascii", "ignore"))
            except (ssl.SSLError, ValueError) as error:
                raise ValueError(f"ca: {self._place('ca')} has no certificates in PEM") from error
        for name, content in (("cert", certificates.cert), ("key", certificates.key)):
            label = b"CERTIFICATE-----" if name == "cert" else b"PRIVATE KEY-----"
            if content is not None and label not in content:
                what = "certificate" if name == "cert" else "private key"
                raise ValueError(f"{name}: {self._place(name)} has no {what} in PEM")
        cert, key = self._sources.get("cert"), self._sources.get("key")
        if isinstance(cert, WatchedFile) and isinstance(key, WatchedFile):
            try:
                context.load_cert_chain(cert.path, key.path, _no_password)
            except ssl.SSLError as error:
                reason = error.reason or "they cannot be read"
                raise ValueError(
                    f"cert, key: {cert.path} and {key.path} do not fit together: {reason}"
                ) from error

    def _place(self, name: str) -> str:
        source = self._sources[name]
        return str(source.path) if isinstance(source, WatchedFile) else "what was given"


def _no_password() -> NoReturn:
    raise ValueError("key: is encrypted, which gRPC cannot read; decrypt it first")


def advice(details: str, secure: bool) -> str:
    """Return what to check when a connection could not be made; "" if it is not about TLS.

    Args:
        details: What gRPC says of it.
        secure: Whether the client speaks TLS.
    """
    if not any(words in details for words in ("backends failing", "failed to connect")):
        return ""  # there was a connection
    closed = "Socket closed" in details or "reset by peer" in details
    if not secure:
        if not closed:
            return ""
        return "; this client speaks plaintext: does the server want TLS (ca, or tls)?"
    other_name = (
        "the server's certificate is for another name; see server_name, or use its own name"
    )
    for words, what in (
        ("WRONG_VERSION_NUMBER", "the server does not speak TLS, or a proxy stands in between"),
        ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is not of an authority in ca"),
        ("Verification Check failed", other_name),
        ("is not in peer certificate", other_name),  # in the words of older releases
        ("Failed to create security handshaker", "gRPC cannot use ca, or cert with key"),
    ):
        if words in details:
            return f"; TLS failed: {what}"
    if closed:
        return (
            "; the server ended the TLS handshake: does it want a client certificate (cert, key)"
            " of an authority that it trusts?"
        )
    return "; TLS failed: check ca, cert and key" if "handshake" in details.lower() else ""
