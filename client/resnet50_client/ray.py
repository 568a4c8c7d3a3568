"""Servers of a Ray cluster, for `Client(RayServers())`, or `Client.from_ray()`.

Needs Ray, of the cluster's version; the extra `[ray]` has it. The servers are those that
`resnet50-server ray deploy` starts; calls go to them directly, without Ray.
"""

from __future__ import annotations

import ray

__all__ = ["RayServers"]

# Of the actor that lists an application's servers, as `resnet50_server.ray.directory` has them.
NAMESPACE = "resnet50"
DIRECTORY = "servers of {app}"
TIMEOUT_S = 5.0


class RayServers:
    """Returns the current addresses of an application's servers when it is called.

    Args:
        app: Name of the application.
        address: Address of the Ray cluster, e.g. "10.0.0.1:6379"; "auto" for the one of this
            machine or of RAY_ADDRESS. Unused in a process that is connected to one.

    Raises:
        ConnectionError: The cluster cannot be reached.
    """

    def __init__(self, app: str = "resnet50", *, address: str = "auto") -> None:
        self._app, self._address = app, address
        self._connect()

    def __call__(self) -> list[str]:
        """Return the addresses of the servers that are ready, as host:port.

        Raises:
            LookupError: The cluster has no servers of this application.
            RayError: The cluster does not respond.
        """
        self._connect()  # a copy of another process may not be
        try:
            directory = ray.get_actor(DIRECTORY.format(app=self._app), namespace=NAMESPACE)
        except ValueError as error:
            raise LookupError(
                f"the Ray cluster has no servers of the application {self._app!r}; deploy them with"
                " `resnet50-server ray deploy`"
            ) from error
        addresses: list[str] = ray.get(directory.addresses.remote(), timeout=TIMEOUT_S)
        return addresses

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._app!r})"

    def _connect(self) -> None:
        if not ray.is_initialized():
            ray.init(address=self._address, log_to_driver=False)
