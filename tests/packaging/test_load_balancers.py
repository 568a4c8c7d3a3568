"""Configurations of load balancers name the servers' limits, and become those of `make proxies`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from resnet50_server.api.listen import MAX_METADATA_BYTES
from resnet50_server.settings import Settings
from tests.e2e.proxies.balancers import BALANCERS, Addresses, Balancer, Tls, configured
from tests.e2e.proxies.callers import NotAsPromised
from tests.support.deployments import DEPLOY

ADDRESSES = Addresses(front=1001, backs=(1002, 1003), metrics=(1004, 1005))
TLS = Tls(Path("/t/crt"), Path("/t/key"), Path("/t/pem"), b"")
CALLS = Settings.model_fields["max_calls_per_connection"].default
BY_NAME = {balancer.name: balancer for balancer in BALANCERS}


def text(balancer: Balancer, tls: Tls | None = None) -> str:
    return configured((DEPLOY / balancer.config).read_text(), ADDRESSES, Path("/folder"), tls)


def test_connections_have_as_many_calls_as_the_servers_allow():
    envoy = yaml.safe_load(text(BY_NAME["envoy"]))["static_resources"]
    (listener,), (cluster,) = envoy["listeners"], envoy["clusters"]
    (chain,) = listener["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    (options,) = cluster["typed_extension_protocol_options"].values()
    for one in (manager, options["explicit_http_config"]):
        assert one["http2_protocol_options"]["max_concurrent_streams"] == CALLS
    assert manager["max_request_headers_kb"] * 1024 == MAX_METADATA_BYTES
    haproxy = text(BY_NAME["haproxy"])
    assert re.findall(r"tune\.h2\.fe\.max-concurrent-streams (\d+)", haproxy) == [str(CALLS)]
    assert f"http2_max_concurrent_streams {CALLS};" in text(BY_NAME["nginx"])


@pytest.mark.parametrize("balancer", BALANCERS, ids=lambda balancer: balancer.name)
def test_ports_are_replaced_and_comments_are_not(balancer):
    replaced = text(balancer)
    for port in (1001, 1002, 1003):
        assert len(re.findall(rf"\b{port}\b", replaced)) == 1
    source = (DEPLOY / balancer.config).read_text()
    comments = [line for line in source.splitlines() if line.lstrip().startswith("#")]
    assert comments == [line for line in replaced.splitlines() if line.lstrip().startswith("#")]


def test_configuration_without_a_port_is_refused():
    with pytest.raises(NotAsPromised, match="port 1001"):
        configured("nothing", ADDRESSES, Path("/folder"), None)


def test_envoy_with_tls_has_a_certificate_in_its_chain():
    envoy = yaml.safe_load(text(BY_NAME["envoy"], TLS))
    (listener,) = envoy["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    context = chain["transport_socket"]["typed_config"]["common_tls_context"]
    (certificate,) = context["tls_certificates"]
    assert certificate["certificate_chain"]["filename"] == "/t/crt"
    assert context["alpn_protocols"] == ["h2"]


@pytest.mark.parametrize(
    ("name", "plain", "encrypted"),
    [
        ("haproxy", "bind 127.0.0.1:1001 proto h2", "bind 127.0.0.1:1001 ssl crt /t/pem alpn h2"),
        ("nginx", "listen 127.0.0.1:1001 http2;", "listen 127.0.0.1:1001 ssl http2;"),
    ],
)
def test_tls_replaces_the_plaintext_listener(name, plain, encrypted):
    active = [line.strip() for line in text(BY_NAME[name], TLS).splitlines()]
    assert plain not in active
    assert any(line.startswith(encrypted) for line in active)
    assert plain in [line.strip() for line in text(BY_NAME[name]).splitlines()]
