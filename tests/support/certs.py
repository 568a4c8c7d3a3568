"""Certificates for tests, made by `trustme`, and files that hold them."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import trustme

# Key type that is quick to make.
EC = trustme.KeyType.ECDSA


def authority() -> trustme.CA:
    return trustme.CA(key_type=EC)


def issue(ca: trustme.CA, *names: str, days: float = 365.0, **options) -> trustme.LeafCert:
    """Return a certificate for names, 127.0.0.1 by default, that expires in `days`."""
    now = datetime.now(timezone.utc)
    return ca.issue_cert(
        *(names or ("127.0.0.1",)),
        not_before=now - timedelta(days=400),
        not_after=now + timedelta(days=days),
        key_type=EC,
        **options,
    )


def chain(leaf: trustme.LeafCert) -> bytes:
    return b"".join(one.bytes() for one in leaf.cert_chain_pems)


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, path)


class Files:
    """A server's certificate and key as files, in a directory."""

    def __init__(self, directory: Path, leaf: trustme.LeafCert) -> None:
        self.cert = directory / "server.pem"
        self.key = directory / "server.key"
        self.put(leaf)

    def put(self, leaf: trustme.LeafCert) -> None:
        replace(self.cert, chain(leaf))
        replace(self.key, leaf.private_key_pem.bytes())
        self.key.chmod(0o600)

    @property
    def settings(self) -> dict[str, Path]:
        return {"tls_cert": self.cert, "tls_key": self.key}

    @property
    def flags(self) -> list[str]:
        return ["--tls-cert", str(self.cert), "--tls-key", str(self.key)]


def credentials(ca: trustme.CA, client: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    """Return what a client needs that trusts `ca` and shows the certificate `client`."""
    if client is None:
        return grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    return grpc.ssl_channel_credentials(
        ca.cert_pem.bytes(), client.private_key_pem.bytes(), chain(client)
    )
