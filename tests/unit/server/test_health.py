"""Health status of the server, and errors while it is determined."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health_pb2

from resnet50_server.api.health import POLL_INTERVAL_S, HealthReporter, HealthServicer
from tests.support import virtual_time


def test_health_is_updated_after_a_check_that_failed(caplog):
    found: list[str | Exception | None] = [None]

    def unready() -> str | None:
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    async def follow() -> list[int]:
        health = HealthReporter([""], unready, dict)
        health.start()
        seen = []
        for now in (KeyError("lost"), "the engine is lost"):
            found[0] = now
            await asyncio.sleep(2.5 * POLL_INTERVAL_S)
            request = health_pb2.HealthCheckRequest()
            seen.append((await health.servicer.Check(request, None)).status)
        health.close()
        return seen

    SERVING = health_pb2.HealthCheckResponse.SERVING
    assert virtual_time.run(follow()) == [SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert caplog.text.count("health check failed") == 1


async def test_name_that_comes_and_goes_is_told_to_who_watches_it():
    response = health_pb2.HealthCheckResponse
    servicer = HealthServicer()
    watching = servicer.Watch(health_pb2.HealthCheckRequest(service="v"), None)
    assert (await anext(watching)).status == response.SERVICE_UNKNOWN
    for statuses, said in (
        ({"v": response.SERVING}, response.SERVING),
        ({"v": response.NOT_SERVING, "w": response.SERVING}, response.NOT_SERVING),
        ({"w": response.SERVING}, response.SERVICE_UNKNOWN),
    ):
        following = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        servicer.set(statuses)
        assert (await following).status == said
    await watching.aclose()


async def test_health_watcher_that_never_reads_blocks_nothing():
    response = health_pb2.HealthCheckResponse
    servicer = HealthServicer()
    servicer.set({"": response.SERVING})
    slow, quick = (servicer.Watch(health_pb2.HealthCheckRequest(), None) for _ in range(2))
    assert (await anext(slow)).status == response.SERVING
    seen = []
    for status in (response.SERVING, response.NOT_SERVING, response.UNKNOWN):
        servicer.set({"": status})
        seen.append((await anext(quick)).status)
    assert seen == [response.SERVING, response.NOT_SERVING, response.UNKNOWN]
    assert (await anext(slow)).status == response.UNKNOWN
    for one in (slow, quick):
        await one.aclose()
