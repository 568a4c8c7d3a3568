"""Parameters of requests: time limit and priority."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from resnet50_server.errors import DeadlineUnreachable, InvalidRequest

from ..call import Call

Response = TypeVar("Response")


def apply_parameters(parameters: Any, call: Call) -> float | None:
    """Apply `priority`, above 1 it is bulk, and `timeout`, in microseconds; 0 is none.

    Args:
        parameters: Of a ModelInferRequest.
        call: Its bulk priority and its deadline are set; its permit counts as bulk.

    Returns:
        When `timeout` ends the call, in loop time; None if gRPC's deadline is earlier, or without.

    Raises:
        InvalidRequest: One of them is not a number from 0 on.
        Overloaded: The limits on bulk requests are reached.
    """
    if "priority" in parameters and _number(parameters, "priority") > 1:
        assert call.permit is not None  # set by the guard, before the message was parsed
        call.permit.make_bulk()
        call.bulk = True
    if "timeout" not in parameters or not (timeout_us := _number(parameters, "timeout")):
        return None
    due = asyncio.get_running_loop().time() + timeout_us / 1e6
    if call.deadline is not None and call.deadline <= due:
        return None
    call.deadline = due
    return due


def asks_for_bulk(parameters: Any) -> bool:
    """Return whether `priority` says bulk; a wrong one is refused by `apply_parameters`.

    Args:
        parameters: Of a ModelInferRequest.
    """
    try:
        return "priority" in parameters and _number(parameters, "priority") > 1
    except InvalidRequest:
        return False


async def end_at(due: float, work: Coroutine[Any, Any, Response]) -> Response:
    """Return the result of work, or cancel it when `timeout` has passed: gRPC knows nothing of it.

    Args:
        due: In loop time.
        work: Computes the response.

    Raises:
        DeadlineUnreachable: It has passed.
    """
    task, late = asyncio.current_task(), False
    assert task is not None

    def on_timeout() -> None:
        nonlocal late
        late = True
        task.cancel()

    # Not wait_for, which makes a task of its own on Python below 3.12.
    timer = asyncio.get_running_loop().call_at(due, on_timeout)
    try:
        return await work
    except asyncio.CancelledError:
        if not late:
            raise
        raise DeadlineUnreachable(
            "parameters.timeout: has passed before the images were computed; allow more time, or"
            " send fewer images a call"
        ) from None
    finally:
        timer.cancel()


def refuse_parameters(parameters: Any, ignored: tuple[str, ...]) -> None:
    """Refuse parameters of a load or an unload, such as another configuration.

    Args:
        parameters: Of the request.
        ignored: Names of those that change nothing.

    Raises:
        InvalidRequest: There are others.
    """
    for name in parameters:
        if name not in ignored:
            raise InvalidRequest(
                f"parameters.{name}",
                "is not supported; a variant is loaded as its directory describes it",
            )


def _number(parameters: Any, name: str) -> int:
    parameter = parameters[name]
    value = getattr(parameter, parameter.WhichOneof("parameter_choice") or "int64_param")
    if isinstance(value, (str, bool, float)) or value < 0:
        raise InvalidRequest(f"parameters.{name}", f"is {value!r}, must be 0 or a larger integer")
    return int(value)
