"""A front before a real server: it speaks TLS, wants tokens, and remembers what came with calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import trustme
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from resnet50_client._aio_status import keep_status
from tests.support.certs import EC, chain
from tests.support.certs import replace as put
from tests.support.clients import Caller, items
from tests.support.pictures import encode, photo_like
from tests.support.serving import serving

PNG = encode(photo_like(32, 32))
TOKEN = "a-very-secret-token"


@dataclass
class Files:
    """PEM files of a certificate, of its key and of an authority, in a folder."""

    folder: Path
    cert: Path = field(init=False)
    key: Path = field(init=False)

    def __post_init__(self) -> None:
        self.cert, self.key = self.folder / "client.pem", self.folder / "client.key"

    def ca(self, *authorities: trustme.CA) -> Path:
        return replaced(self.folder / "ca.pem", b"".join(bundle(one) for one in authorities))

    def client(self, ca: trustme.CA, name: str) -> dict[str, Path]:
        """Write a client's certificate; give the arguments that name its files."""
        leaf = ca.issue_cert("client@example.org", common_name=name, key_type=EC)
        replaced(self.key, leaf.private_key_pem.bytes())
        replaced(self.cert, chain(leaf))
        return {"cert": self.cert, "key": self.key}


def replaced(path: Path, content: bytes | str) -> Path:
    """Replace a file atomically, as secrets are mounted."""
    put(path, content.encode() if isinstance(content, str) else content)
    return path


def bundle(ca: trustme.CA) -> bytes:
    return ca.cert_pem.bytes()


def server_credentials(
    ca: trustme.CA, *names: str, clients: bytes | None = None
) -> grpc.ServerCredentials:
    """Return a server's, with a certificate for names; `clients` are the authorities of mTLS."""
    leaf = ca.issue_cert(*(names or ("localhost", "127.0.0.1")), key_type=EC)
    pair = (leaf.private_key_pem.bytes(), chain(leaf))
    return grpc.ssl_server_credentials([pair], clients, clients is not None)


@dataclass
class Seen:
    """A call that came: its method, its metadata, the name in its client's certificate.

    Attributes:
        left_s: Remaining time, in seconds; None if it has none.
    """

    method: str
    metadata: dict[str, Any]
    client: str | None
    left_s: float | None


class Front(grpc.GenericRpcHandler):
    """Hands calls on to a real server, byte by byte, if their token is right.

    Attributes:
        tokens: Those that are right; None for calls that need none.
        seen: All calls that came, refused ones included.
        failures: Errors of the next calls, which are not handed on.
        cut_after: How many answers a stream gives before the next "connection loss"; None: all.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.address = ""
        self.tokens: set[str] | None = None
        self.seen: list[Seen] = []
        self.failures: list[status_pb2.Status] = []
        self.cut_after: int | None = None
        self.allowed: Callable[[str], bool] = lambda token: True
        self._channel = channel

    @property
    def authorizations(self) -> list[str | None]:
        return [one.metadata.get("authorization") for one in self.seen]

    def methods(self) -> list[str]:
        return [one.method.rpartition("/")[2] for one in self.seen]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def call(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            await self._admit(details, context)
            method: Any = self._channel.stream_stream(details.method)
            onward = keep_status(method(requests))
            try:
                answered = 0
                async for reply in onward:
                    yield reply
                    answered += 1
                    if answered == self.cut_after:
                        self.cut_after = None
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "the line was cut")
            except grpc.aio.AioRpcError as error:
                packed = tuple(error.trailing_metadata() or ())
                await context.abort(error.code(), error.details(), packed)
            finally:
                onward.cancel()

        return grpc.stream_stream_rpc_method_handler(call)

    async def _admit(self, details: grpc.HandlerCallDetails, context: Any) -> None:
        metadata: dict[str, Any] = dict(details.invocation_metadata)
        names = context.auth_context().get("x509_common_name", [None])
        client = names[0] and names[0].decode()
        self.seen.append(Seen(details.method, metadata, client, context.time_remaining()))
        if self.tokens is not None:
            token = metadata.get("authorization", "").removeprefix("Bearer ")
            if token not in self.tokens:
                text = "authorization: the token is unknown" if token else "authorization: missing"
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)
            if not self.allowed(token):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "needs the scope 'infer'")
        if self.failures:
            status = self.failures.pop(0)
            code = next(one for one in grpc.StatusCode if one.value[0] == status.code)
            packed = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(code, status.message, packed)


def unavailable() -> status_pb2.Status:
    return status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="restarting")


def overloaded() -> status_pb2.Status:
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=1_000_000))
    packed = any_pb2.Any()
    packed.Pack(retry)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    return status_pb2.Status(code=code, message="full", details=[packed])


@contextlib.asynccontextmanager
async def fronting(
    credentials: grpc.ServerCredentials | None = None, listen: str = "127.0.0.1:0", **settings: Any
) -> AsyncIterator[Front]:
    """Run a server behind a front that speaks TLS with `credentials`, plaintext without."""
    async with (
        serving(**settings) as server,
        grpc.aio.insecure_channel(server.addresses[0]) as channel,
    ):
        front = Front(channel)
        public = grpc.aio.server()
        public.add_generic_rpc_handlers((front,))
        if credentials is None:
            port = public.add_insecure_port(listen)
        else:
            port = public.add_secure_port(listen, credentials)
        # Not localhost, of which gRPC tells the failure of one address only.
        front.address = listen if listen.startswith("unix:") else f"127.0.0.1:{port}"
        await public.start()
        try:
            yield front
        finally:
            await public.stop(0)
            await asyncio.sleep(0)


async def every_call(client: Caller) -> None:
    """Make a call of each kind."""
    await client.wait_until_ready(timeout_s=30)
    assert await client.health() == "SERVING"
    assert (await client.classify(PNG)).top.label == "tench"
    assert (await client.embed(large_png())).vector.shape == (2048,)
    assert len(await client.list_variants()) == 1
    assert (await client.get_variant()).name == "IMAGENET1K_V2"
    for name in ("classify_stream", "embed_stream"):
        assert len([item async for item in items(client, name, [PNG] * 3)]) == 3
    for name in ("classify_many", "embed_many"):  # single calls at first, then batches
        assert len([item async for item in items(client, name, [PNG] * 60)]) == 60


def large_png() -> bytes:
    """Return one that goes by upload; data after a PNG's end is ignored."""
    return PNG + bytes(5 * 2**20)
