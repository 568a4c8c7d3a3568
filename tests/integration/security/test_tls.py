"""TLS and mTLS of real servers; certificates and tokens replaced while they serve."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator

import grpc
import pytest
import trustme
from cryptography import x509

import resnet50_server.api.listen
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_server.api.inference_service import InferenceServicer
from tests.support import certs
from tests.support.pictures import encode, picture
from tests.support.serving import server_processes, serving

PNG = encode(picture())


def classify(channel: grpc.aio.Channel, **call):
    request = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
    return inference_pb2_grpc.InferenceServiceStub(channel).Classify(request, **call)


@contextlib.asynccontextmanager
async def secured(
    address: str, credentials: grpc.ChannelCredentials
) -> AsyncIterator[grpc.aio.Channel]:
    # Without a pool of its own, channels to one address share their connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        yield channel


async def refused(address: str, credentials: grpc.ChannelCredentials) -> str:
    """Return why a connection is not made."""
    async with secured(address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await classify(channel)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    return error.value.details()


def shown(address: str, ca: trustme.CA) -> x509.Certificate:
    """Return the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    ca.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        return x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True))


def certificate(leaf: trustme.LeafCert) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certs.chain(leaf))


@pytest.fixture
def files(ca, tmp_path) -> certs.Files:
    return certs.Files(tmp_path, certs.issue(ca))


# TLS


async def test_tls_port_refuses_plaintext_and_unknown_authorities(ca, files):
    async with serving(**files.settings) as server:
        (address,) = server.addresses
        async with secured(address, certs.credentials(ca)) as channel:
            assert (await classify(channel)).classification.categories
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await classify(channel)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in await refused(
            address, certs.credentials(certs.authority())
        )


async def test_unix_socket_beside_tls_stays_in_clear_text(ca, files, tmp_path):
    listen = ["127.0.0.1:0", f"unix:{tmp_path}/r.sock"]
    async with serving(listen=listen, **files.settings) as server:
        async with secured(server.addresses[0], certs.credentials(ca)) as channel:
            await classify(channel)
        async with grpc.aio.insecure_channel(server.addresses[1]) as channel:
            await classify(channel)


async def test_name_that_the_certificate_does_not_have_is_not_believed(ca, tmp_path):
    files = certs.Files(tmp_path, certs.issue(ca, "other.example"))
    async with serving(**files.settings) as server:
        assert await refused(server.addresses[0], certs.credentials(ca))


async def test_connection_that_does_not_begin_its_handshake_is_closed(files, monkeypatch):
    monkeypatch.setattr(resnet50_server.api.listen, "HANDSHAKE_TIMEOUT_MS", 200)
    async with serving(**files.settings) as server:
        host, _, port = server.addresses[0].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        # By itself, gRPC would wait for 120 s.
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()


# mTLS


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """Names of the callers, as a servicer gets them."""
    names = []
    answer = InferenceServicer.Classify

    def Classify(servicer, request, call):
        names.append(call.caller.name)
        return answer(servicer, request, call)

    monkeypatch.setattr(InferenceServicer, "Classify", Classify)
    return names


async def test_mtls_accepts_certificates_of_the_client_authority(ca, files, tmp_path, seen):
    clients = certs.authority()
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    async with serving(**files.settings, tls_client_ca=tmp_path / "clients.pem") as server:
        (address,) = server.addresses
        for leaf, name in (
            (certs.issue(clients, "cam.example", common_name="camera"), "cert:cam.example"),
            (certs.issue(clients, "10.0.0.7", common_name="camera"), "cert:camera"),
            (certs.issue(clients, "10.0.0.7"), "address:127.0.0.1"),
        ):
            async with secured(address, certs.credentials(ca, leaf)) as channel:
                await classify(channel)
            assert seen.pop() == name
        # Without, of another authority (also the server's own), or one that has expired.
        for leaf in (
            None,
            certs.issue(certs.authority(), "cam.example"),
            certs.issue(ca, "cam.example"),
            certs.issue(clients, "cam.example", days=-1),
        ):
            await refused(address, certs.credentials(ca, leaf))
    assert seen == []


async def test_tls_caller_without_certificate_is_its_address(ca, files, seen):
    async with serving(**files.settings) as server:
        leaf = certs.issue(ca, "cam.example")
        async with secured(server.addresses[0], certs.credentials(ca, leaf)) as channel:
            await classify(channel)
    assert seen == ["address:127.0.0.1"]


async def test_plaintext_callers_are_addresses(seen, tmp_path):
    listen = ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/r.sock"]
    async with serving(listen=listen) as server:
        for address in server.addresses:
            async with grpc.aio.insecure_channel(address) as channel:
                await classify(channel)
    assert seen == ["address:127.0.0.1", "address:::1", "address:unix"]


# Replaced under load


class Load:
    """Calls over one connection and over new ones, all the time."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials) -> None:
        self._address = address
        self.credentials = credentials
        self.answered = 0
        self._ending = False

    async def _over_one(self) -> None:
        async with secured(self._address, self.credentials) as channel:
            while not self._ending:
                await classify(channel)
                self.answered += 1

    async def _over_new(self) -> None:
        while not self._ending:
            async with secured(self._address, self.credentials) as channel:
                await classify(channel)
                self.answered += 1

    async def more(self, calls: int = 20) -> None:
        """Wait until so many more calls have been answered, or one has failed."""
        until = self.answered + calls
        while self.answered < until:
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.001)

    async def __aenter__(self) -> Load:
        self._tasks = [
            asyncio.create_task(one()) for one in (self._over_one, self._over_one, self._over_new)
        ]
        await self.more()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)  # raises what a call has raised


async def test_certificate_rotation_under_load_fails_no_call(ca, files):
    async with serving(listen=["127.0.0.1:0", "127.0.0.1:0"], **files.settings) as server:
        async with Load(server.addresses[0], certs.credentials(ca)) as load:
            for _ in range(5):
                leaf = certs.issue(ca)
                # A new certificate with the old key for a moment: as if it was not there.
                files.put(leaf)
                await load.more()
                for address in server.addresses:  # both know of it
                    assert await asyncio.to_thread(shown, address, ca) == certificate(leaf)
        assert load.answered >= 120


async def test_broken_new_certificate_keeps_the_old_one_serving(ca, files, caplog):
    async with serving(**files.settings) as server:
        (address,) = server.addresses
        before = await asyncio.to_thread(shown, address, ca)
        async with Load(address, certs.credentials(ca)) as load:
            certs.replace(files.key, b"-----BEGIN PRIVATE KEY-----\nhalf")
            await load.more()
            assert await asyncio.to_thread(shown, address, ca) == before
            leaf = certs.issue(ca)
            certs.replace(files.cert, certs.chain(leaf))
            await load.more()
            assert await asyncio.to_thread(shown, address, ca) == before
            files.put(leaf)
            await load.more()
            assert await asyncio.to_thread(shown, address, ca) == certificate(leaf)
    assert "not a private key in PEM" in caplog.text


async def test_new_client_authority_replaces_the_old_one(ca, files, tmp_path):
    old, new = certs.authority(), certs.authority()
    path = tmp_path / "clients.pem"
    certs.replace(path, old.cert_pem.bytes())
    of_old = certs.credentials(ca, certs.issue(old, "cam.example"))
    of_new = certs.credentials(ca, certs.issue(new, "cam.example"))
    async with serving(**files.settings, tls_client_ca=path) as server:
        (address,) = server.addresses
        async with Load(address, of_old) as load:
            await refused(address, of_new)
            # First both, then clients change over, then the new one alone.
            certs.replace(path, old.cert_pem.bytes() + new.cert_pem.bytes())
            async with secured(address, of_new) as channel:
                await classify(channel)
            await load.more()
            load.credentials = of_new
            await load.more()
        async with secured(address, of_old) as connected:
            await classify(connected)
            certs.replace(path, new.cert_pem.bytes())
            await refused(address, of_old)
            # Connected clients stay connected.
            await classify(connected)


async def test_server_tells_when_its_certificate_expires(ca, files):
    async with serving(**files.settings) as server:
        assert server.parts.certificates is not None
        files.put(certs.issue(ca, days=90))
        told = server.parts.certificates.expires_at
        expires = certificate_of(files).not_valid_after_utc
        assert told == expires.timestamp()


def certificate_of(files: certs.Files) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.cert.read_bytes())


# Starting


def start_refused(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "resnet50_server", "serve", "--variants", "IMAGENET1K_V2"),
            *("--engine", "null", "--log-level", "error", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_start_in_clear_text_where_others_reach_it_is_refused():
    status, errors = start_refused("--listen", "127.0.0.1:0", "--listen", "0.0.0.0:0")
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith("resnet50-server: listen: 0.0.0.0:0 ")
    for part in ("tls_cert", "tls_key", "allow_plaintext"):
        assert part in line


@pytest.mark.parametrize("setting", ["tls_cert", "tls_key", "tls_client_ca", "tokens_file"])
def test_start_with_a_file_that_is_not_sound_is_refused(files, tmp_path, setting):
    broken = tmp_path / "broken"
    broken.write_text("nothing of the kind")
    flags = [*files.flags, "--" + setting.replace("_", "-"), str(broken)]
    status, errors = start_refused("--listen", "127.0.0.1:0", *flags)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"resnet50-server: {setting}: {broken}")


async def test_process_serves_tls_or_plaintext_if_allowed(ca, files):
    with server_processes() as start:
        serve = ("--variants", "IMAGENET1K_V2", "--engine", "null", "--listen", "0.0.0.0:0")
        one, two = start(*serve, *files.flags), start(*serve, "--allow-plaintext")
        one.wait_until_listening()
        address = one.wait_until_listening()
        async with secured(address.replace("0.0.0.0", "127.0.0.1"), certs.credentials(ca)) as tls:
            await classify(tls)
        two.wait_until_listening()
        address = two.wait_until_listening()
        async with grpc.aio.insecure_channel(address.replace("0.0.0.0", "127.0.0.1")) as clear:
            await classify(clear)
        _, errors = two.terminate()
    assert "0.0.0.0:0 is plaintext" in errors
