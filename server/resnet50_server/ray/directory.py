"""The directory: an actor that lists the servers of an application, and why starts failed.

It outlives replicas and the controller of Ray Serve, and Ray starts it again if its node is lost;
replicas then announce themselves within seconds. Clients find it by its name
(`resnet50_client.ray`).
"""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass, replace
from typing import Any

import ray

# As `resnet50_client.ray` has them.
NAMESPACE = "resnet50"
DIRECTORY = "servers of {app}"

ANNOUNCE_S = 2.0
# A server that has not been announced for this long is not listed.
LISTED_S = 4 * ANNOUNCE_S
# Failed starts that are remembered.
MAX_FAILURES = 20
# Pause before a start on a node on which the last ones failed; doubled for each of them.
MIN_PAUSE_S, MAX_PAUSE_S, MAX_DOUBLINGS = 0.5, 30.0, 10
# Failed starts on a node are forgotten after this time without another.
FORGET_S = 600.0
READY, RESTARTING = "ready", "restarting"


@dataclass(frozen=True)
class ServerEntry:
    """A server.

    Attributes:
        replica: ID of its replica.
        node: IP address of its node.
        address: Its host:port.
        state: "ready" or "restarting".
        reason: Why it is restarted; "" if it is ready.
        pid: Its process ID on the node.
    """

    replica: str
    node: str
    address: str
    state: str
    reason: str
    pid: int


@dataclass(frozen=True)
class FailedStart:
    """A failed start of a server.

    Attributes:
        replica: ID of its replica.
        node: IP address of its node.
        reason: Exit code and last lines of the server.
        age_s: Seconds since then.
    """

    replica: str
    node: str
    reason: str
    age_s: float = 0.0


class Directory:
    """Lists the servers of an application."""

    def __init__(self) -> None:
        self._servers: dict[str, tuple[ServerEntry, float]] = {}
        self._failed: collections.deque[tuple[FailedStart, float]] = collections.deque(
            maxlen=MAX_FAILURES
        )
        # Failed starts in succession by node, and the time of the last one.
        self._in_succession: dict[str, tuple[int, float]] = {}

    def announce(self, entry: ServerEntry) -> None:
        """List a server, or change its state."""
        now = time.monotonic()
        # Replicas that were killed withdraw nothing.
        self._servers = {
            replica: (known, at)
            for replica, (known, at) in self._servers.items()
            if now - at < LISTED_S
        }
        self._servers[entry.replica] = (entry, now)
        if entry.state == READY:
            self._in_succession.pop(entry.node, None)

    def withdraw(self, replica: str) -> None:
        """Remove a server."""
        self._servers.pop(replica, None)

    def start_failed(self, failed: FailedStart) -> None:
        """Remember a failed start."""
        now = time.monotonic()
        self._failed.append((failed, now))
        self._in_succession = {
            node: (failures, at)
            for node, (failures, at) in self._in_succession.items()
            if now - at < FORGET_S
        }
        failures, _ = self._in_succession.get(failed.node, (0, now))
        self._in_succession[failed.node] = (failures + 1, now)

    def pause_s(self, node: str) -> float:
        """Return the pause before the next start on a node, in seconds."""
        failures, at = self._in_succession.get(node, (0, 0.0))
        if time.monotonic() - at >= FORGET_S:
            return 0.0
        # Not the power of any number of failures, which no float holds after a night of them.
        doublings = min(failures - 1, MAX_DOUBLINGS)
        return min(MAX_PAUSE_S, MIN_PAUSE_S * 2**doublings) if failures else 0.0

    def addresses(self) -> list[str]:
        """Return the addresses of the servers that are ready, as host:port."""
        return sorted(one.address for one in self.servers() if one.state == READY)

    def servers(self) -> list[ServerEntry]:
        """Return all servers that were announced lately."""
        now = time.monotonic()
        return [entry for entry, at in self._servers.values() if now - at < LISTED_S]

    def failed_starts(self) -> list[FailedStart]:
        """Return the last failed starts, the oldest first."""
        now = time.monotonic()
        return [replace(failed, age_s=now - at) for failed, at in self._failed]


def open_directory(app: str) -> Any:
    """Return the handle of an application's directory; start it if there is none."""
    return (
        ray.remote(Directory)
        .options(
            name=DIRECTORY.format(app=app),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=-1,
            num_cpus=0,
        )
        .remote()
    )


def find_directory(app: str) -> Any | None:
    """Return the handle of an application's directory; None if there is none."""
    try:
        return ray.get_actor(DIRECTORY.format(app=app), namespace=NAMESPACE)
    except ValueError:
        return None
