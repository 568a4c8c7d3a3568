"""The server's certificate and key, and its clients' CAs: read, checked and reloaded."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from resnet50_server.errors import UnusableSetting

from .reloaded_files import ReloadedFiles

log = logging.getLogger(__name__)

DAY_S = 86_400.0
# Within this time before a certificate expires, the log warns once a day.
EXPIRY_WARNING_S = 14 * DAY_S


@dataclass(frozen=True)
class TlsBundle:
    """The inputs of a TLS handshake, in PEM.

    Attributes:
        certificate: The server's certificate, followed by its chain.
        key: The private key of the server's certificate.
        client_ca: CAs of clients' certificates; None without mTLS.
        expires_at: When the first certificate of the chain expires, in Unix seconds.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    expires_at: float


class TlsReloader:
    """The files of `tls_cert`, `tls_key` and `tls_client_ca`, reloaded on change. Thread-safe.

    New files are used only if they are valid: readable, not expired, and the key matches the
    certificate. Otherwise, for instance while only one of two files is written, the previous ones
    stay in use.

    Args:
        cert: Path of the server's certificate.
        key: Path of its key.
        client_ca: Path of the clients' CAs, for mTLS.
        clock: Returns the time, in Unix seconds.

    Raises:
        UnusableSetting: A file is not valid; says which and why.
    """

    def __init__(
        self,
        cert: Path,
        key: Path,
        client_ca: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._clock = clock
        self._lock = threading.Lock()
        self._warn_at = 0.0
        self._files = ReloadedFiles(
            self._read,
            *filter(None, (cert, key, client_ca)),
            kept="certificate",
            check=self._check_expiry,
        )
        self._announce()

    @property
    def expires_at(self) -> float:
        """When the certificate in use expires, in Unix seconds."""
        return self.current().expires_at

    def current(self) -> TlsBundle:
        """Return the current bundle, reloaded if the files have changed."""
        # If another thread is already checking, use the current one.
        if self._lock.acquire(blocking=False):
            try:
                if self._files.reload():
                    self._announce()
                self._warn_of_expiry()
            finally:
                self._lock.release()
        return self._files.value

    def _announce(self) -> None:
        log.info("tls_cert: %s: valid until %s", self._cert, _date(self._files.value.expires_at))
        self._warn_at = 0.0
        if os.name == "posix" and _mode(self._key) & stat.S_IROTH:
            log.warning("tls_key: %s is readable by every user of this machine", self._key)
        self._warn_of_expiry()

    def _warn_of_expiry(self) -> None:
        now, expires_at = self._clock(), self._files.value.expires_at
        if expires_at - now > EXPIRY_WARNING_S or now < self._warn_at:
            return
        self._warn_at = now + DAY_S
        log.log(
            logging.WARNING if expires_at > now else logging.ERROR,
            "tls_cert: %s %s on %s; replace the file, it is reloaded without a restart",
            self._cert,
            "expires" if expires_at > now else "has expired",
            _date(expires_at),
        )

    def _read(self) -> TlsBundle:
        certificate, chain = _certificates("tls_cert", self._cert)
        key = _content("tls_key", self._key)
        try:
            public = serialization.load_pem_private_key(key, None).public_key()
        except TypeError as error:
            raise UnusableSetting(
                "tls_key", f"{self._key} has a passphrase; store it without one"
            ) from error
        except (ValueError, UnsupportedAlgorithm):
            # Without the cause, which could contain parts of the key.
            raise UnusableSetting("tls_key", f"{self._key} is not a private key in PEM") from None
        if public != chain[0].public_key():
            raise UnusableSetting(
                "tls_key", f"{self._key} is not the key of the first certificate in {self._cert}"
            )
        expires_at = min(one.not_valid_after_utc.timestamp() for one in chain)
        client_ca = None
        if self._client_ca is not None:
            client_ca, _ = _certificates("tls_client_ca", self._client_ca)
        return TlsBundle(certificate, key, client_ca, expires_at)

    def _check_expiry(self, bundle: TlsBundle) -> None:
        if bundle.expires_at <= self._clock():
            raise UnusableSetting(
                "tls_cert", f"{self._cert} has expired on {_date(bundle.expires_at)}"
            )


def _certificates(setting: str, path: Path) -> tuple[bytes, list[x509.Certificate]]:
    content = _content(setting, path)
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise UnusableSetting(setting, f"{path} has no PEM certificates: {error}") from error
    # The parser ignores a truncated certificate.
    if content.count(b"-----BEGIN CERTIFICATE-----") > len(found):
        raise UnusableSetting(setting, f"{path} is truncated within a certificate")
    return content, found


def _content(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableSetting(setting, f"{path} cannot be read: {error.strerror}") from error


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
