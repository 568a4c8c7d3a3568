"""Deploying and deleting an application of Ray Serve."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

import ray
from ray import serve
from ray.exceptions import RayError

from .application import build
from .cluster import last_line
from .directory import FailedStart, find_directory
from .options import RayOptions

TIMEOUT_S = 10.0


class Deployment:
    """A deployment in progress, which runs in a thread.

    Args:
        app: Name of the application.
        options: Its options.

    Attributes:
        error: Why it failed; None if it did not.
    """

    def __init__(self, app: str, options: RayOptions) -> None:
        self._app, self._options = app, options
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name="deploy", daemon=True)

    def start(self) -> None:
        """Deploy the application, or change the one of that name."""
        self._thread.start()

    def ended(self, timeout_s: float) -> bool:
        """Wait; return whether all servers are ready, or the deployment has failed.

        Args:
            timeout_s: Time to wait in seconds.
        """
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def failed_starts(self) -> list[FailedStart]:
        """Return the last failed starts of servers, the oldest first."""
        if (directory := find_directory(self._app)) is None:
            return []
        with suppress(RayError):  # it is being started again
            found: list[FailedStart] = ray.get(directory.failed_starts.remote(), timeout=TIMEOUT_S)
            return found
        return []

    def _run(self) -> None:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            # Calls do not go through Ray's proxies.
            serve.start(proxy_location="Disabled")
            serve.run(build(self._options), name=self._app, route_prefix=None)
        except Exception as error:  # of Ray, in many classes; shown to the user
            self.error = last_line(str(error)) or type(error).__name__


def delete_app(app: str) -> None:
    """Stop the servers of an application, which complete the calls in flight."""
    serve.delete(app)
    if (directory := find_directory(app)) is not None:
        ray.kill(directory)
