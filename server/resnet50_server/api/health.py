"""What gRPC's health service says of the server and of each variant: SERVING while it answers.

Names are "" and the services, for the server; `resnet50.v1.InferenceService/NAME` for a variant;
and the health service's own, for the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

log = logging.getLogger(__name__)

Status: TypeAlias = health_pb2.HealthCheckResponse.ServingStatus.ValueType
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_Response = health_pb2.HealthCheckResponse
# How often to look whether what was said still holds: a device can be lost at any time.
LOOK_S = 0.5


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    """grpc.health.v1; names come and go."""

    def __init__(self) -> None:
        self._statuses: dict[str, Status] = {}
        self._changed = asyncio.Event()

    def set(self, statuses: Mapping[str, Status]) -> None:
        """Say this from now on; a name that is not in it is not known any more."""
        if statuses == self._statuses:
            return
        self._statuses = dict(statuses)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Return a name's status; NOT_FOUND if it is not known."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "service: there is none of this name")
        return _Response(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Give a name's status whenever it has changed; SERVICE_UNKNOWN while it is not known.

        A caller that takes its time gets the latest one, and delays nobody else.
        """
        said: Status | None = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _Response.SERVICE_UNKNOWN)
            if status != said:
                said = status
                yield _Response(status=status)
            else:
                await changed.wait()


class ServingHealth:
    """Says how the server and its variants are to callers that ask or watch.

    Args:
        services: Names of the server as a whole; "" is among them.
        unready: Says why the server takes no images; None if it does.
        variants: Says the same of each variant, by its name in the health service.

    Attributes:
        servicer: What is asked.
    """

    def __init__(
        self,
        services: Sequence[str],
        unready: Callable[[], str | None],
        variants: Callable[[], Mapping[str, str | None]],
    ) -> None:
        self.servicer = HealthServicer()
        self._services = services
        self._unready = unready
        self._variants = variants
        self._problem: str | None = ""  # none was said yet
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Say how it is from now on."""
        self.look()
        self._following = asyncio.create_task(self._follow(), name="follow health")

    def look(self) -> None:
        """Say how it is now."""
        problem, said = self._unready(), self._problem
        problems = dict.fromkeys(self._services, problem) | dict(self._variants())
        # Its own name: whether the process lives, also while it loads or drains. For liveness
        # probes, which would otherwise kill it then.
        problems[health.SERVICE_NAME] = None
        self.servicer.set(
            {
                name: _Response.SERVING if one is None else _Response.NOT_SERVING
                for name, one in problems.items()
            }
        )
        self._problem = problem
        if problem != said and (problem is None or said is None):
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
                self.look()
            except Exception as error:
                # Callers that ask for the health would be told for ever what held until now.
                if repr(error) != failed:
                    log.exception("the server's health could not be looked at; it will be again")
                failed = repr(error)
            else:
                failed = ""
