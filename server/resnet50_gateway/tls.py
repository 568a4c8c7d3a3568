"""The gateway's certificate, reloaded when its files change."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from .settings import Settings

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 5.0


class TlsContext:
    """A context for HTTPS.

    Args:
        settings: With `tls_cert` and `tls_key`.

    Attributes:
        context: Its certificate is replaced in place; connections keep theirs.

    Raises:
        OSError: A file cannot be read, or is not valid.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.tls_cert is not None and settings.tls_key is not None
        self._cert, self._key = settings.tls_cert, settings.tls_key
        self._versions = self._stat()
        self._last_error = ""
        self.context = _context(self._cert, self._key)
        if settings.tls_client_ca is not None:
            self.context.load_verify_locations(settings.tls_client_ca)
            self.context.verify_mode = ssl.CERT_REQUIRED

    async def follow_changes(self) -> None:
        """Reload changed files until cancelled."""
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            self.reload_changed()

    def reload_changed(self) -> None:
        """Reload the files if they have changed; while they are invalid the old ones stay.

        Files that are invalid, or that the disk failed to read, are tried again by the next call.
        """
        versions = self._stat()
        if versions == self._versions:
            return
        try:
            _context(self._cert, self._key)  # both files belong together
            self.context.load_cert_chain(self._cert, self._key, password="")
        except OSError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                log.error("tls_cert: %s: %s; continuing with the previous one", self._cert, error)
        else:
            self._versions, self._last_error = versions, ""
            log.info("tls_cert: %s is reloaded", self._cert)

    def _stat(self) -> list[tuple[int, int] | None]:
        return [_version(path) for path in (self._cert, self._key)]


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An empty passphrase, or OpenSSL would ask for one at the terminal.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        raise OSError(
            f"{cert} and {key} are not a certificate and its key in PEM, without a passphrase:"
            f" {error.reason or error}"
        ) from error
    return context
