"""The end of a drain: calls on their way are rejected, those in flight complete, gRPC stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from resnet50_server.inference.admission import Admission

# When gRPC stops it cancels the calls that have arrived but that it has not handed over yet, and
# their clients see CANCELLED (grpc/grpc#41785). So calls are rejected first, until none has arrived
# for `QUIET_S`, and for `MAX_REJECT_S` at most. A wait that ends more than `MAX_LATE_S` late shows
# nothing: the loop was stalled, and calls that arrived meanwhile have not been handed over.
QUIET_S = 0.05
MAX_LATE_S = 0.01
MAX_REJECT_S = 1.0
# How often idleness is checked, and how long the last responses have to be sent.
POLL_S = 0.02
LAST_RESPONSES_S = 0.5
NO_LIMIT_S = 1e6


async def reject_arriving(admission: Admission, timeout_s: float) -> None:
    """Wait until no call has been on its way for a while; the server is draining and rejects them.

    Args:
        admission: Rejects them.
        timeout_s: The most that this takes, in seconds.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + min(MAX_REJECT_S, timeout_s)
    while (now := loop.time()) < ends:
        before = admission.refused_while_draining
        await asyncio.sleep(QUIET_S)
        in_time = loop.time() - now <= QUIET_S + MAX_LATE_S
        if in_time and admission.refused_while_draining == before:
            break


async def stop_when_idle(
    server: grpc.aio.Server, is_idle: Callable[[], bool], timeout_s: float
) -> None:
    """Accept no more calls, wait for those in flight, then cancel the rest.

    Args:
        server: The server.
        is_idle: Returns whether no image is in flight and no stream of frames is open.
        timeout_s: The most that calls in flight may take, in seconds.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + timeout_s
    # Waits for calls in flight. Streams that watch health never end, so the wait is cut short once
    # all images have been answered. The first `stop` has no limit of its own: of two whose limits
    # end together, one would cancel the calls of a server that the other has destroyed, and crash.
    stopping = asyncio.create_task(server.stop(NO_LIMIT_S), name="stop gRPC")
    while not stopping.done() and loop.time() < ends:
        if is_idle():
            ends = min(ends, loop.time() + LAST_RESPONSES_S)
            await asyncio.wait([stopping], timeout=ends - loop.time())
            break
        await asyncio.wait([stopping], timeout=POLL_S)
    await server.stop(None)
    await stopping
