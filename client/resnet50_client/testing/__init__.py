"""A fake server for tests of applications that use the SDK; needs neither torch nor the server.

    from resnet50_client import Client, OverloadedError
    from resnet50_client.testing import FakeServer

    def test_label_is_shown():
        with FakeServer(categories=("cat", "dog")) as server, Client(server.address) as client:
            server.script({"dog": 0.9, "cat": 0.1}, OverloadedError("full", retry_after_s=0.1))
            assert client.classify(b"any bytes").top.label == "dog"

With pytest, `pytest_plugins = ["resnet50_client.testing.fixtures"]` in a conftest.py provides the
fixture `resnet50_server`, one fake server for each test.
"""

from .fake_server import FakeServer
from .script import Received

__all__ = ["FakeServer", "Received"]
