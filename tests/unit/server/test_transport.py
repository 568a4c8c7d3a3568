"""Every channel option is known to gRPC, which ignores names that it does not know."""

from __future__ import annotations

from pathlib import Path

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from resnet50_client._channel_config import channel_options
from resnet50_server.api.listen import server_options
from resnet50_server.settings import Settings


def test_grpc_knows_the_names_of_all_options():
    library = Path(cygrpc.__file__).read_bytes()
    served = server_options(Settings(variants=["IMAGENET1K_V2"], listen=["127.0.0.1:0"]))
    for name, _ in (*served, *channel_options()):
        assert name.encode() in library, name
