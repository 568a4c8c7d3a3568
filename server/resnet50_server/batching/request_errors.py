"""Errors of requests that get no result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from resnet50_server.errors import DeadlineUnreachable, ServingError

if TYPE_CHECKING:
    from .queue import PendingRequest


def fail_pending(
    requests: Iterable[PendingRequest],
    make_error: Callable[[], ServingError],
    cause: Exception | None = None,
) -> None:
    """Fail the requests that are not done.

    Args:
        requests: Some may be done.
        make_error: Returns the error of one request: each needs a traceback of its own.
        cause: The cause of the errors.
    """
    for request in requests:
        if not request.future.done():
            error = make_error()
            error.__cause__ = cause
            request.future.set_exception(error)


def deadline_error(
    left_s: float, needed_s: float, margin_s: float = 0.0, accepted: bool = False
) -> DeadlineUnreachable:
    """Return the error of a request that cannot be answered in time.

    Args:
        left_s: Until the deadline, in seconds.
        needed_s: Until the answer is expected, in seconds.
        margin_s: How much later it may be, in seconds.
        accepted: Whether the request was accepted before.
    """
    margin = f" and a margin of {margin_s * 1e3:.1f} ms" if margin_s >= 1e-4 else ""
    return DeadlineUnreachable(
        f"the deadline is {max(0.0, left_s) * 1e3:.1f} ms away and the answer needs about"
        f" {needed_s * 1e3:.1f} ms{margin}; nothing was computed: allow more time or call another"
        " server",
        accepted=accepted,
    )
