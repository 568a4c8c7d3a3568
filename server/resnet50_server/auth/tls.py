"""The server's certificate and key, and the CAs of its clients: read, checked, and read again.

grpc stays in `listeners.py`, which hands these to it.
"""

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

from .file_watch import FileChangeDetector

log = logging.getLogger(__name__)

DAY_S = 86_400.0
# From so long before a certificate expires on, the log says so once a day.
EXPIRY_WARNING_S = 14 * DAY_S


@dataclass(frozen=True)
class TlsBundle:
    """What a TLS handshake needs, all PEM.

    Attributes:
        certificate: The server's, then those that lead to its CA.
        key: The private key of the first.
        client_ca: CAs that sign clients' certificates; None if clients need none.
        expires_at: When the first of the server's certificates expires, in Unix seconds.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    expires_at: float


class TlsReloader:
    """The files of `tls_cert`, `tls_key` and `tls_client_ca`. For any thread.

    New files take the place of the old ones only if they are sound: readable, the key that of the
    certificate, not expired. Otherwise, and while one of two files is written and the other is not
    yet, the old ones stay.

    Args:
        cert: Path of the server's certificate.
        key: Path of its key.
        client_ca: Path of the clients' CAs, for mTLS.
        clock: Tells the time, in Unix seconds.

    Raises:
        UnusableSetting: The files are not sound; which, and why.
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
        self._files = FileChangeDetector(*filter(None, (cert, key, client_ca)))
        self._lock = threading.Lock()
        self._complaint = ""
        self._warn_at = 0.0
        self._files.changed()
        self._current = self._read()
        self._check_expiry(self._current)
        self._announce()

    @property
    def expires_at(self) -> float:
        """When the certificate in use expires, in Unix seconds."""
        return self.current().expires_at

    def current(self) -> TlsBundle:
        """Return what to use now. Costs some `stat`s while nothing changes."""
        # Whoever comes while another thread looks takes what there is.
        if self._lock.acquire(blocking=False):
            try:
                if self._files.changed():
                    self._reload()
                self._warn_of_expiry()
            finally:
                self._lock.release()
        return self._current

    def _reload(self) -> None:
        try:
            material = self._read()
            if material != self._current:
                self._check_expiry(material)
        except UnusableSetting as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.error("%s; going on with the certificate that was read before", error)
            return
        self._complaint = ""
        if material != self._current:
            self._current = material
            self._announce()

    def _announce(self) -> None:
        log.info("tls_cert: %s: valid until %s", self._cert, _date(self._current.expires_at))
        self._warn_at = 0.0
        if os.name == "posix" and _mode(self._key) & stat.S_IROTH:
            log.warning("tls_key: %s can be read by every user of this machine", self._key)
        self._warn_of_expiry()

    def _warn_of_expiry(self) -> None:
        now, expires_at = self._clock(), self._current.expires_at
        if expires_at - now > EXPIRY_WARNING_S or now < self._warn_at:
            return
        self._warn_at = now + DAY_S
        log.log(
            logging.WARNING if expires_at > now else logging.ERROR,
            "tls_cert: %s %s on %s; put a new one in its place, it is read without a restart",
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
            # Without the cause: nothing of what is in that file may reach a log.
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

    def _check_expiry(self, material: TlsBundle) -> None:
        if material.expires_at <= self._clock():
            raise UnusableSetting(
                "tls_cert", f"{self._cert} has expired on {_date(material.expires_at)}"
            )


def _certificates(setting: str, path: Path) -> tuple[bytes, list[x509.Certificate]]:
    content = _content(setting, path)
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise UnusableSetting(setting, f"{path} holds no certificates in PEM: {error}") from error
    # What is cut off within a certificate is passed over in silence.
    if content.count(b"-----BEGIN CERTIFICATE-----") > len(found):
        raise UnusableSetting(setting, f"{path} ends within a certificate")
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
