from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from resnet50_server.api.listen import is_local, listen, server_options
from resnet50_server.auth.tls import DAY_S, TlsReloader
from resnet50_server.errors import UnusableSetting
from resnet50_server.settings import Settings
from tests.support import certs


class Server:
    """Stands where gRPC's would; knows what was bound, and how."""

    def __init__(self) -> None:
        self.bound: list[tuple[str, str]] = []

    def add_insecure_port(self, address: str) -> int:
        self.bound.append(("plaintext", address))
        return 1234

    def add_secure_port(self, address: str, credentials: object) -> int:
        self.bound.append(("TLS", address))
        return 1234


def settings(*addresses: str, **more) -> Settings:
    return Settings(listen=list(addresses), variants=["x=random:0"], **more)


def resolving(monkeypatch, names: dict[str, list[str]]) -> None:
    """Let host names resolve to these addresses, and others to none."""

    async def getaddrinfo(loop, host, port, **options):
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in names[host]]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)


# Options of gRPC


def test_age_of_connections_and_its_grace_reach_grpc_in_milliseconds():
    options = dict(
        server_options(
            settings("127.0.0.1:0", max_connection_age_s=30, max_connection_age_grace_s=20.5)
        )
    )
    assert options["grpc.max_connection_age_ms"] == 30_000
    assert options["grpc.max_connection_age_grace_ms"] == 20_500


def test_connections_have_no_age_by_default():
    options = dict(server_options(settings("127.0.0.1:0")))
    assert options["grpc.max_connection_age_ms"] == 2**31 - 1  # gRPC's INT_MAX: never
    assert options["grpc.max_connection_age_grace_ms"] == 60_000


# Addresses that other machines reach


NAMES = {
    "here": ["127.0.0.1", "::1"],
    "here-in-odd": ["::ffff:127.0.0.1"],
    "there": ["10.0.0.7"],
    "here-and-there": ["127.0.0.1", "10.0.0.7"],
    "nowhere": [],
    "127.1": ["127.0.0.1"],
}


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:0", True),
        ("127.200.3.4:50051", True),
        ("[::1]:0", True),
        ("::1:0", True),
        ("[::ffff:127.0.0.1]:0", True),
        ("unix:/run/r.sock", True),
        ("here:0", True),
        ("here-in-odd:0", True),
        ("127.1:0", True),
        ("0.0.0.0:0", False),
        ("[::]:0", False),
        ("[::ffff:10.0.0.7]:0", False),
        ("10.0.0.7:0", False),
        ("128.0.0.1:0", False),
        ("[fe80::1%lo]:0", False),
        ("there:0", False),
        ("here-and-there:0", False),
        ("nowhere:0", False),
        ("unknown:0", False),
        ("*:0", False),
        ("dns:///here:0", False),
        ("unix-abstract:r:0", False),
    ],
)
async def test_address_is_local_if_no_other_machine_reaches_it(monkeypatch, address, local):
    resolving(monkeypatch, NAMES)
    assert await is_local(address) is local


async def test_localhost_is_local():
    assert await is_local("localhost:0")


async def test_remote_plaintext_is_refused_before_binding():
    server = Server()
    with pytest.raises(UnusableSetting) as refused:
        await listen(server, settings("127.0.0.1:1", "0.0.0.0:2"), None)
    for part in ("listen", "0.0.0.0:2", "tls_cert", "tls_key", "allow_plaintext"):
        assert part in str(refused.value)
    assert server.bound == []


async def test_remote_plaintext_is_allowed_if_asked_and_logged(caplog):
    server = Server()
    allowed = settings("127.0.0.1:1", "0.0.0.0:0", allow_plaintext=True)
    assert await listen(server, allowed, None) == ["127.0.0.1:1234", "0.0.0.0:1234"]
    (warning,) = caplog.messages
    assert "0.0.0.0:0" in warning
    assert "token" not in warning


async def test_warning_says_that_tokens_are_readable_too(tmp_path, caplog):
    allowed = settings("0.0.0.0:0", allow_plaintext=True, tokens_file=tmp_path / "tokens.toml")
    await listen(Server(), allowed, None)
    assert "tokens included" in caplog.text


async def test_tls_applies_to_tcp_and_not_to_unix_sockets(tmp_path, caplog):
    files = certs.Files(tmp_path, certs.issue(certs.authority()))
    addresses = ["0.0.0.0:0", "127.0.0.1:0", "unix:/tmp/r.sock"]
    server = Server()
    await listen(
        server,
        settings(*addresses, allow_plaintext=True, **files.settings),
        TlsReloader(files.cert, files.key),
    )
    assert server.bound == list(zip(["TLS", "TLS", "plaintext"], addresses, strict=True))
    assert caplog.messages == []


async def test_unix_socket_of_a_stopped_process_is_not_replaced(tmp_path):
    path = str(tmp_path / "r.sock")
    with contextlib.ExitStack() as stack:
        stuck = stack.enter_context(socket.socket(socket.AF_UNIX))
        stuck.bind(path)
        stuck.listen(0)
        # Its connections are not accepted any more, and there is no room for another one.
        with pytest.raises(BlockingIOError):
            while True:
                caller = stack.enter_context(socket.socket(socket.AF_UNIX))
                caller.setblocking(False)
                caller.connect(path)
        server = Server()
        with pytest.raises(OSError, match="another server does"):
            await listen(server, settings(f"unix:{path}"), None)
    assert server.bound == []


async def test_each_address_is_told_of_a_new_certificate_once(tmp_path, monkeypatch):
    """gRPC makes a new TLS context of whatever it is told before a handshake."""
    fetchers = []
    monkeypatch.setattr(
        grpc, "dynamic_ssl_server_credentials", lambda first, fetch, **_: fetchers.append(fetch)
    )
    ca = certs.authority()
    files = certs.Files(tmp_path, certs.issue(ca))
    certificates = TlsReloader(files.cert, files.key)
    await listen(Server(), settings("127.0.0.1:0", "127.0.0.1:0", **files.settings), certificates)
    assert [fetch() for fetch in fetchers] == [None, None]
    files.put(certs.issue(ca))
    assert None not in [fetch() for fetch in fetchers]
    assert [fetch() for fetch in fetchers] == [None, None]


# Certificates


@pytest.fixture
def ca():
    return certs.authority()


@pytest.fixture
def files(ca, tmp_path) -> certs.Files:
    return certs.Files(tmp_path, certs.issue(ca))


class Clock:
    """The real time, and how far it was moved."""

    moved_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.moved_s


def test_new_pair_takes_the_place_of_the_old_one(ca, files):
    certificates = TlsReloader(files.cert, files.key)
    first = certificates.current()
    assert certificates.current() is first
    leaf = certs.issue(ca, days=500)
    files.put(leaf)
    second = certificates.current()
    assert second.certificate == certs.chain(leaf)
    assert second.key == leaf.private_key_pem.bytes()
    assert certificates.expires_at > first.expires_at


def test_new_client_ca_takes_the_place_of_the_old_one(files, tmp_path):
    path = tmp_path / "clients.pem"
    certs.authority().cert_pem.write_to_path(path)
    certificates = TlsReloader(files.cert, files.key, path)
    assert certificates.current().client_ca == path.read_bytes()
    certs.authority().cert_pem.write_to_path(path)
    assert certificates.current().client_ca == path.read_bytes()


def test_pair_replaced_while_it_is_read_is_read_again(ca, files, monkeypatch):
    monkeypatch.setattr("resnet50_server.runtime.file_changes.MTIME_GRANULARITY_NS", 0)
    certificates = TlsReloader(files.cert, files.key)
    certificates.current()
    second, third = certs.issue(ca, days=400), certs.issue(ca, days=500)
    load = serialization.load_pem_private_key

    def replaced_meanwhile(*arguments):
        monkeypatch.setattr(serialization, "load_pem_private_key", load)
        files.put(third)
        return load(*arguments)

    files.put(second)
    monkeypatch.setattr(serialization, "load_pem_private_key", replaced_meanwhile)
    assert certificates.current().certificate == certs.chain(second)
    assert certificates.current().certificate == certs.chain(third)


def test_files_that_do_not_change_are_not_read_again(files, monkeypatch):
    monkeypatch.setattr("resnet50_server.runtime.file_changes.MTIME_GRANULARITY_NS", 0)
    certificates = TlsReloader(files.cert, files.key)
    certificates.current()
    monkeypatch.setattr(Path, "read_bytes", None)
    for _ in range(3):
        certificates.current()


def test_link_that_is_turned_to_other_files_is_a_change(ca, tmp_path):
    """How Kubernetes replaces a mounted secret."""
    leaves = {name: certs.issue(ca) for name in ("one", "two")}
    for name, leaf in leaves.items():
        (tmp_path / name).mkdir()
        certs.Files(tmp_path / name, leaf)
    link = tmp_path / "current"
    link.symlink_to("one")
    certificates = TlsReloader(link / "server.pem", link / "server.key")
    link.unlink()
    link.symlink_to("two")
    assert certificates.current().certificate == certs.chain(leaves["two"])


def errors(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]


@pytest.mark.parametrize(
    ("breakage", "part"),
    [
        (lambda files, ca: certs.replace(files.cert, b"torn"), "no PEM certificates"),
        (lambda files, ca: files.cert.unlink(), "cannot be read"),
        (lambda files, ca: certs.replace(files.key, b"torn"), "not a private key in PEM"),
        (
            lambda files, ca: certs.replace(files.cert, certs.chain(certs.issue(ca))),
            "not the key of",
        ),
        (lambda files, ca: files.put(certs.issue(ca, days=-1)), "has expired"),
        (
            # Torn within its chain, where what is left is a certificate.
            lambda files, ca: certs.replace(
                files.cert, files.cert.read_bytes() + files.cert.read_bytes()[:300]
            ),
            "is truncated within a certificate",
        ),
    ],
    ids=["cert torn", "cert missing", "key torn", "only cert new", "expired", "chain torn"],
)
def test_broken_new_certificate_keeps_the_old_and_logs_once(ca, files, caplog, breakage, part):
    certificates = TlsReloader(files.cert, files.key)
    first = certificates.current()
    breakage(files, ca)
    for _ in range(3):
        assert certificates.current() is first
    (complaint,) = errors(caplog)
    assert part in complaint
    assert str(files.cert) in complaint or str(files.key) in complaint

    leaf = certs.issue(ca)
    files.put(leaf)
    assert certificates.current().certificate == certs.chain(leaf)


@pytest.mark.parametrize(
    ("breakage", "parts"),
    [
        (lambda files: files.cert.unlink(), ["tls_cert", "server.pem", "No such file"]),
        (lambda files: files.key.unlink(), ["tls_key", "server.key", "No such file"]),
        (lambda files: files.cert.write_bytes(b""), ["tls_cert", "server.pem", "PEM"]),
        (lambda files: files.key.write_bytes(b"x"), ["tls_key", "server.key", "PEM"]),
        (
            lambda files: files.key.write_bytes(
                certs.issue(certs.authority()).private_key_pem.bytes()
            ),
            ["tls_key", "server.key", "server.pem", "not the key"],
        ),
        (
            lambda files: files.put(certs.issue(certs.authority(), days=-2)),
            ["tls_cert", "server.pem", "has expired on"],
        ),
        (lambda files: encrypt(files), ["tls_key", "server.key", "passphrase"]),
    ],
    ids=["no cert", "no key", "empty cert", "no PEM", "other key", "expired", "passphrase"],
)
def test_pair_that_is_not_sound_is_refused_with_the_reason(files, breakage, parts):
    breakage(files)
    with pytest.raises(UnusableSetting) as refused:
        TlsReloader(files.cert, files.key)
    for part in parts:
        assert part in str(refused.value)


def encrypt(files: certs.Files) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def test_client_ca_that_is_none_is_refused(files, tmp_path):
    path = tmp_path / "clients.pem"
    path.write_bytes(files.key.read_bytes())
    with pytest.raises(UnusableSetting, match=r"tls_client_ca: .*clients.pem has no PEM cert"):
        TlsReloader(files.cert, files.key, path)


def test_expiry_is_logged_daily_in_the_last_two_weeks(ca, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    files, clock = certs.Files(tmp_path, certs.issue(ca, days=30)), Clock()
    certificates = TlsReloader(files.cert, files.key, clock=clock)
    assert "valid until" in caplog.text

    def warned() -> list[str]:
        caplog.clear()
        for _ in range(2):
            certificates.current()
        return [one.levelname for one in caplog.records]

    assert warned() == []
    clock.moved_s = 15.5 * DAY_S
    assert warned() == []
    clock.moved_s = 16.5 * DAY_S
    assert warned() == ["WARNING"]
    clock.moved_s = 17.4 * DAY_S
    assert warned() == []
    clock.moved_s = 17.6 * DAY_S
    assert warned() == ["WARNING"]
    clock.moved_s = 30.5 * DAY_S
    assert warned() == ["ERROR"]
    assert "has expired" in caplog.text
    files.put(certs.issue(ca, days=90))
    assert warned() == ["INFO"]


def test_expiring_certificate_is_logged_at_start(ca, tmp_path, caplog):
    files = certs.Files(tmp_path, certs.issue(ca, days=3))
    TlsReloader(files.cert, files.key)
    assert "expires on" in caplog.text


def test_chain_expires_with_the_first_of_its_certificates(ca, files):
    with_key, other = certs.issue(ca, days=50), certs.issue(ca, days=20)
    files.put(with_key)
    certs.replace(files.cert, certs.chain(with_key) + certs.chain(other))
    remaining_s = TlsReloader(files.cert, files.key).expires_at - time.time()
    assert 19 * DAY_S < remaining_s < 21 * DAY_S


def test_key_that_every_user_can_read_is_warned_of(files, caplog):
    TlsReloader(files.cert, files.key)
    assert caplog.messages == []
    files.key.chmod(0o644)
    TlsReloader(files.cert, files.key)
    assert "server.key is readable by every user" in caplog.text


def test_keys_are_in_no_log_and_no_repr(ca, files, caplog):
    caplog.set_level(logging.DEBUG)
    key = files.key.read_text()
    certificates = TlsReloader(files.cert, files.key)
    shown = repr(certificates) + repr(certificates.current())
    certs.replace(files.key, key.replace("BEGIN", "BEGIN ").encode())
    certificates.current()
    lines = [line for line in key.splitlines() if "KEY" not in line]
    assert not any(line in shown + caplog.text for line in lines)
