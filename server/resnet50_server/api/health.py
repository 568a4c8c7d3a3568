"""gRPC health: SERVING for the server, and for each variant, while it accepts images.

Names are "" and the services, for the server; `resnet50.v1.InferenceService/NAME` for a variant;
and the health service's own, for the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from .call import GrpcContext

log = logging.getLogger(__name__)

Status: TypeAlias = health_pb2.HealthCheckResponse.ServingStatus.ValueType

_Response = health_pb2.HealthCheckResponse
# How often the status is updated: a device can fail at any time.
POLL_INTERVAL_S = 0.5


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    """grpc.health.v1, with names that may be added and removed."""

    def __init__(self) -> None:
        self._statuses: dict[str, Status] = {}
        self._changed = asyncio.Event()

    def set(self, statuses: Mapping[str, Status]) -> None:
        """Replace all statuses; names that are not among them become unknown."""
        if statuses == self._statuses:
            return
        self._statuses = dict(statuses)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: GrpcContext
    ) -> health_pb2.HealthCheckResponse:
        """Return a name's status; NOT_FOUND if it is not known."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "service: unknown name")
        return _Response(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: GrpcContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Give a name's status whenever it has changed; SERVICE_UNKNOWN while it is not known.

        A slow client gets the latest one, and delays no other.
        """
        reported: Status | None = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _Response.SERVICE_UNKNOWN)
            if status != reported:
                reported = status
                yield _Response(status=status)
            else:
                await changed.wait()


class HealthReporter:
    """Keeps the health service up to date.

    Args:
        services: Names that stand for the whole server, "" among them.
        unready: Returns why the server accepts no images; None if it does.
        variants: Returns the same of each variant, by its name in the health service.

    Attributes:
        servicer: The health service.
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
        self._problem: str | None = ""  # not reported yet
        self._polling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Report the health, and update it regularly."""
        self.update()
        self._polling = asyncio.create_task(self._poll(), name="follow health")

    def update(self) -> None:
        """Report the health now."""
        problem, reported = self._unready(), self._problem
        problems = dict.fromkeys(self._services, problem) | dict(self._variants())
        # Its own name is SERVING also while the server loads or drains: for liveness probes, which
        # would restart the process otherwise.
        problems[health.SERVICE_NAME] = None
        self.servicer.set(
            {
                name: _Response.SERVING if one is None else _Response.NOT_SERVING
                for name, one in problems.items()
            }
        )
        self._problem = problem
        if problem != reported and (problem is None or reported is None):
            log.info("health: %s", "SERVING" if problem is None else f"NOT_SERVING: {problem}")

    def close(self) -> None:
        """Stop the updates."""
        if self._polling is not None:
            self._polling.cancel()

    async def _poll(self) -> None:
        failed = ""
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            try:
                self.update()
            except Exception as error:
                # Otherwise clients would see a stale status for ever.
                if repr(error) != failed:
                    log.exception("the health check failed; it will be retried")
                failed = repr(error)
            else:
                failed = ""
