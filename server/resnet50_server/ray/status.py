"""State of an application: that of Ray Serve, its servers, and why starts failed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import ray
from ray import serve
from ray.exceptions import RayError

from .cluster import last_line
from .directory import FailedStart, ServerEntry, find_directory
from .options import DEPLOYMENT

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class AppStatus:
    """State of an application.

    Attributes:
        state: Ray Serve's, e.g. "RUNNING", "DEPLOYING", "DEPLOY_FAILED"; "NOT_STARTED" if there is
            no such application.
        message: Ray Serve's reason of the state, one line; "" for none.
        replicas: Number of replicas by Ray Serve's state of them, e.g. {"RUNNING": 2}.
        servers: The servers.
        failed_starts: The last failed starts, the oldest first.
    """

    state: str
    message: str
    replicas: dict[str, int]
    servers: list[ServerEntry]
    failed_starts: list[FailedStart]


def read_status(app: str) -> AppStatus:
    """Return the state of an application."""
    state, message, replicas = "NOT_STARTED", "", {}
    found = serve.status().applications.get(app)
    if found is not None:
        state, message = found.status.value, last_line(found.message)
        if (deployment := found.deployments.get(DEPLOYMENT)) is not None:
            message = last_line(deployment.message) or message
            replicas = dict(deployment.replica_states)
    servers: list[ServerEntry] = []
    failed: list[FailedStart] = []
    if (directory := find_directory(app)) is not None:
        with suppress(RayError):  # it is being started again
            servers, failed = ray.get(
                [directory.servers.remote(), directory.failed_starts.remote()], timeout=TIMEOUT_S
            )
    return AppStatus(state, message, replicas, servers, failed)
