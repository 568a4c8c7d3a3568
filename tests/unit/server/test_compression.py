"""Which gRPC is allowed to expand compressed messages."""

from __future__ import annotations

import grpc
import pytest

from resnet50_server.api.listen import compression_options

ONLY_IDENTITY = [("grpc.compression_enabled_algorithms_bitset", 1)]


@pytest.mark.parametrize("version", ["1.72.1", "1.83.0", "1.83.2"])
def test_unbounded_grpc_decompression_is_refused(version):
    assert compression_options(version) == ONLY_IDENTITY


@pytest.mark.parametrize("version", ["1.84.0", "1.85.3", "1.100.0", "2.0.0", "1.84.0rc1"])
def test_grpc_that_stops_at_the_limit_takes_them(version):
    assert compression_options(version) == []


def test_version_of_the_grpc_that_is_here_is_understood():
    assert compression_options(grpc.__version__) in ([], ONLY_IDENTITY)
