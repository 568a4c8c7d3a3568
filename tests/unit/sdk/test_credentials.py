from __future__ import annotations

import os
import subprocess
import sys

import pytest

from resnet50_client import Client
from resnet50_client._addresses import is_local
from resnet50_client._auth import Bearer, Credentials
from resnet50_client._config import Connection
from resnet50_client._tls import CertificateSources, advice
from resnet50_client._watched_file import WatchedFile
from tests.support.certs import authority
from tests.support.secured import Files, bundle, replaced


@pytest.fixture(scope="module")
def ca():
    return authority()


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


# When TLS is spoken


def test_tls_is_used_when_any_tls_option_is_given(ca, files):
    assert not Credentials.of().secure
    assert not Credentials.of(tls=False).secure
    assert not Credentials.of(token="x").secure
    assert Credentials.of(tls=True).secure
    assert Credentials.of(ca=bundle(ca)).secure
    assert Credentials.of(**files.client(ca, "a")).secure
    assert Credentials.of(server_name="models.example").secure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cert": b"x"}, "^cert, key: a client certificate needs both"),
        ({"key": b"x"}, "^cert, key: a client certificate needs both"),
        ({"tls": False, "ca": b"x"}, "^ca: requires TLS"),
        ({"tls": False, "server_name": "x"}, "^server_name: requires TLS"),
        ({"token": "a", "token_file": "b"}, "^token, token_file: pass only one"),
        ({"token": ""}, "^token: must be visible ASCII"),
        ({"token": "Bearer abc"}, "without the word Bearer"),
        ({"token": "abc\n"}, "^token: must be visible ASCII"),
        ({"token": b"abc"}, "^token: is a bytes, must be text"),
        ({"ca": b"nonsense"}, "^ca: the value contains no PEM certificates"),
        ({"ca": "-----BEGIN CERTIFICATE-----\n..."}, "^ca: is PEM in a str"),
        ({"cert": b"nonsense", "key": b"x"}, "^cert: the value contains no PEM certificate"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Credentials.of(**arguments)


@pytest.mark.parametrize("name", ["ca", "cert", "key", "token_file"])
def test_file_that_is_not_there_is_named_with_its_argument(name, ca, files):
    arguments = {**files.client(ca, "a"), name: files.folder / "absent"}
    with pytest.raises(FileNotFoundError, match=rf"{name}: No such file.*absent"):
        Credentials.of(**arguments)


def test_pem_that_is_no_pem_is_named_with_its_file(ca, files, tmp_path):
    good = files.client(ca, "a")
    nonsense = replaced(tmp_path / "nonsense.pem", "nonsense")
    for name in ("ca", "cert", "key"):
        with pytest.raises(ValueError, match=rf"^{name}: .*nonsense\.pem contains no PEM"):
            Credentials.of(**good | {name: nonsense})


def test_key_of_another_certificate_is_refused(ca, files, tmp_path):
    mine = files.client(ca, "a")
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other").client(ca, "b")
    with pytest.raises(ValueError, match=r"^cert, key: .* do not match"):
        Credentials.of(cert=mine["cert"], key=other["key"])


def test_encrypted_key_is_refused_without_a_prompt(ca, files):
    from cryptography.hazmat.primitives import serialization as form

    certificate = files.client(ca, "a")
    key = form.load_pem_private_key(files.key.read_bytes(), None)
    sealed = form.BestAvailableEncryption(b"password")
    pkcs8 = form.PrivateFormat.PKCS8
    replaced(files.key, key.private_bytes(form.Encoding.PEM, pkcs8, sealed))
    with pytest.raises(ValueError, match=r"^key: is encrypted"):
        Credentials.of(**certificate)


def test_certificates_are_the_same_object_until_they_change(ca, files):
    sources = CertificateSources(files.ca(ca), **files.client(ca, "a"))
    before = sources.current()
    assert sources.current() is before
    files.ca(ca)  # the same again, in another file
    assert sources.current() is before
    files.client(ca, "b")
    after = sources.current()
    assert after is not before
    assert (after.ca, after.cert) == (before.ca, files.cert.read_bytes())


# Where a token may go


@pytest.mark.parametrize(
    "address",
    [
        *("localhost", "localhost:1", "127.0.0.1:1", "127.8.9.1", "[::1]:1", "::1"),
        *("unix:/run/r.sock", "unix-abstract:r", "dns:///localhost:1", "dns:127.0.0.1:1"),
        *("ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1"),
    ],
)
def test_token_may_stay_on_this_machine_in_clear_text(address):
    assert is_local(address)
    Connection.to(address, 1.0, None, credentials=Credentials.of(token="x"))


@pytest.mark.parametrize(
    "address",
    [
        *("models.example", "10.0.0.1:1", "0.0.0.0:1", "[2001:db8::1]:1", "localhost.example:1"),
        *("dns:///models.example:1", "dns://10.0.0.1/localhost:1", "ipv4:127.0.0.1:1,10.0.0.1:1"),
        *("dns:////localhost:1", "ipv6:[::2]:1", "127.0.0.1.example:1"),
    ],
)
def test_token_does_not_leave_this_machine_in_plaintext(address):
    with pytest.raises(ValueError, match=r"^token: would be sent to"):
        Connection.to(address, 1.0, None, credentials=Credentials.of(token="x"))
    for allowed in ({"tls": True}, {"insecure_token": True}):
        Connection.to(address, 1.0, None, credentials=Credentials.of(token="x", **allowed))


def test_one_remote_address_is_enough_to_withhold_the_token():
    with pytest.raises(ValueError, match=r"^token: would be sent to models\.example:1"):
        Client(["localhost:1", "models.example:1"], token="x")


def test_token_is_not_sent_in_plaintext_to_addresses_of_a_function():
    with pytest.raises(ValueError, match=r"^token: would be sent to the addresses of a function"):
        Client(lambda: "localhost:1", token="x")
    with Client(lambda: "localhost:1", token="x", insecure_token=True):
        pass


def test_function_of_addresses_needs_a_server_name_with_tls():
    with pytest.raises(ValueError, match=r"^server_name: with TLS, several hosts, or a function"):
        Client(lambda: "localhost:1", tls=True)


def test_name_of_a_socket_in_tls_is_localhost_and_a_host_keeps_its_own(ca):
    secure = Credentials.of(ca=bundle(ca))
    for server, name in (("unix:/run/r.sock", "localhost"), ("unix-1.example:50051", None)):
        assert Connection.to(server, 1.0, None, credentials=secure).server_name() == name


def test_several_hosts_need_the_name_of_their_certificates(ca):
    with pytest.raises(ValueError, match=r"^server_name: "):
        Client(["127.0.0.1:1", "127.0.0.2:1"], ca=bundle(ca))
    named = Credentials.of(ca=bundle(ca), server_name="models.example")
    assert Connection.to(["a:1", "b:1"], 1.0, None, credentials=named).server_name() == (
        "models.example"
    )
    assert Connection.to(["a:1", "b:1"], 1.0, None).server_name() is None


def test_web_address_is_told_what_to_say_instead():
    with pytest.raises(ValueError, match="omit the scheme, and use"):
        Client("https://models.example:443")


def test_advice_is_about_connections_only():
    assert advice("Socket closed", secure=True) == ""
    assert advice("the image says: handshake", secure=True) == ""
    assert "TLS" in advice("failed to connect to all addresses; Socket closed", secure=False)


def test_advice_knows_the_words_of_the_oldest_grpc():
    said = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: {}"
    name = advice(said.format("Peer name a is not in peer certificate"), secure=True)
    assert "for another name" in name
    authority = advice(
        said.format("Ssl handshake failed: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED"), secure=True
    )
    assert "not signed by a CA in ca" in authority


# Files that change


def test_second_change_within_mtime_granularity_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "resnet50_client._watched_file.fingerprint_of", lambda status: (status.st_size,)
    )
    path = tmp_path / "file"
    path.write_bytes(b"one")
    watched = WatchedFile(path, "x")
    path.write_bytes(b"two")
    assert watched.content() == b"two"


def test_file_that_stays_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    watched = WatchedFile(path, "x")
    monkeypatch.setattr("pathlib.Path.open", lambda *_: pytest.fail("was read again"))
    assert watched.content() == b"one"


def test_swapped_link_is_seen(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "link"
    link.symlink_to("one")
    watched = WatchedFile(link, "x")
    link.unlink()
    link.symlink_to("two")
    assert watched.content() == b"two"


def test_token_stays_while_its_file_is_being_replaced(tmp_path):
    path = tmp_path / "token"
    path.write_text("first\n")
    bearer = Bearer.of(None, path)
    path.write_text("")
    assert bearer.token() == "first"
    path.unlink()
    assert bearer.token() == "first"
    path.write_text("second\n")
    assert bearer.token() == "second"


def test_pipe_is_read_once():
    script = (
        "import sys; from resnet50_client._auth import Bearer;"
        "bearer = Bearer.of(None, sys.argv[1]); print(bearer.token(), bearer.token())"
    )
    command = '"$0" -c "$1" <(echo a-token)'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "a-token a-token\n", done.stderr


def test_file_without_end_is_refused():
    with pytest.raises(OSError, match=r"^token_file: /dev/zero is over"):
        Client(token_file="/dev/zero")
