"""The Ray cluster of these tests, which they share: `make ray` runs them, `make test` does not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# pytest reads this file in `make test` as well, where Ray is not installed.
if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture(scope="session")
def dashboard() -> str:
    """URL of the dashboard, to which `serve deploy` posts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="session")
def cluster(dashboard) -> Iterator[Cluster]:
    """A cluster of three nodes on this machine, and this process connected to it."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    port = int(dashboard.rpartition(":")[2])
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": port}
    found = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        found.add_node(num_cpus=2)
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    yield found
    serve.shutdown()
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def app(cluster) -> Iterator[str]:
    from resnet50_server.ray.deploy import delete_app
    from tests.support.ray_servers import server_processes, wait_until

    name = "shop"
    yield name
    delete_app(name)
    wait_until(lambda: not server_processes())
