"""What the server says of its health, though something is wrong with it."""

from __future__ import annotations

import asyncio

import virtual_time
from grpc_health.v1 import health_pb2

from resnet50_server.health import LOOK_S, ServingHealth


def test_health_is_followed_on_after_a_look_that_failed(caplog):
    found: list[str | Exception | None] = [None]

    def unready() -> str | None:
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    async def follow() -> list[int]:
        health = ServingHealth([""], unready)
        await health.start()
        seen = []
        for now in (KeyError("lost"), "the engine is lost"):
            found[0] = now
            await asyncio.sleep(2.5 * LOOK_S)
            request = health_pb2.HealthCheckRequest()
            seen.append((await health.servicer.Check(request, None)).status)
        health.close()
        return seen

    SERVING = health_pb2.HealthCheckResponse.SERVING
    assert virtual_time.run(follow()) == [SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert caplog.text.count("could not be looked at") == 1
