"""What gRPC's health service says of the server: SERVING while it takes images."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from grpc_health.v1 import health, health_pb2

log = logging.getLogger(__name__)

# How often to look whether what was said still holds: a variant breaks and recovers by itself.
LOOK_S = 0.5


class ServingHealth:
    """Says how the server is to whoever asks or watches.

    Args:
        services: What it says that of; "", the server as a whole, is among them.
        unready: Says why the server takes no images; None if it does.

    Attributes:
        servicer: What is asked.
    """

    def __init__(self, services: Sequence[str], unready: Callable[[], str | None]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._services = services
        self._unready = unready
        self._problem: str | None = ""  # none was said yet
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Say how it is from now on."""
        # Its own: whether the process lives, also while it loads or drains. For liveness probes,
        # which would otherwise kill it then.
        await self.servicer.set(health.SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        await self.look()
        self._following = asyncio.create_task(self._follow(), name="follow health")

    async def look(self) -> None:
        """Say how it is now."""
        problem, said = self._unready(), self._problem
        if problem == said:
            return
        self._problem = problem
        status = health_pb2.HealthCheckResponse.SERVING
        if problem is not None:
            status = health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.servicer.set(service, status)
        if problem is None or said is None:
            log.info("health: %s", "SERVING" if problem is None else f"NOT_SERVING: {problem}")

    def close(self) -> None:
        """Look no more."""
        if self._following is not None:
            self._following.cancel()

    async def _follow(self) -> None:
        failed = ""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception as error:
                # Whoever looks at the health would be told for ever what held until now.
                if repr(error) != failed:
                    log.exception("the server's health could not be looked at; it will be again")
                failed = repr(error)
            else:
                failed = ""
