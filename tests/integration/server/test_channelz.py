"""gRPC's channelz: off unless asked for, and for admins only."""

from __future__ import annotations

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from resnet50_server.cli.main import main
from tests.support.serving import connected, serving

ASK = channelz_pb2.GetServersRequest()


@pytest.fixture
def tokens(tmp_path, capsys):
    """Return a tokens file and the secrets of an admin and of one who may infer only."""
    path = tmp_path / "tokens.toml"
    secrets = []
    for name, scope in (("root", "admin"), ("camera", "infer")):
        assert main(["tokens", "new", name, "--file", str(path), "--scope", scope]) == 0
        secrets.append(capsys.readouterr().out.strip())
    return path, *secrets


async def servers(channel: grpc.aio.Channel, secret: str = ""):
    metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
    stub = channelz_pb2_grpc.ChannelzStub(channel)
    return (await stub.GetServers(ASK, metadata=metadata)).server


async def refused(channel: grpc.aio.Channel, secret: str = "") -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        await servers(channel, secret)
    return error.value.code()


async def test_channelz_answers_admins_only(tokens):
    path, admin, other = tokens
    async with serving(channelz=True, tokens_file=path) as server, connected(server) as channel:
        (seen,) = [one for one in await servers(channel, admin) if one.listen_socket]
        assert seen.data.calls_started > 0
        assert await refused(channel, other) is grpc.StatusCode.PERMISSION_DENIED
        assert await refused(channel) is grpc.StatusCode.UNAUTHENTICATED


async def test_channelz_has_no_admins_without_tokens():
    async with serving(channelz=True) as server, connected(server) as channel:
        assert await refused(channel) is grpc.StatusCode.PERMISSION_DENIED


async def test_channelz_is_off_unless_asked_for(tokens):
    path, admin, _ = tokens
    async with serving(tokens_file=path) as server, connected(server) as channel:
        assert await refused(channel, admin) is grpc.StatusCode.UNIMPLEMENTED
