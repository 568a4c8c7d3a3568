"""The group of timeouts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from resnet50_settings.groups import Group


class Timeouts(Group):
    """Time limits of requests, uploads, streams, decoding, engines and the shutdown."""

    title = "Timeouts"

    receive_timeout_s: Annotated[
        float,
        Field(gt=0, description="Time limit for a single-image message to arrive, in seconds."),
    ] = 10.0
    send_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Time limit for a client to receive the response of a call, in seconds;"
            " then the call is cancelled.",
        ),
    ] = 30.0
    upload_idle_timeout_s: Annotated[
        float,
        Field(gt=0, description="Maximum pause within an upload, in seconds; then it is ended."),
    ] = 30.0
    upload_timeout_s: Annotated[
        float, Field(gt=0, description="Time limit for a whole upload, in seconds.")
    ] = 600.0
    stream_idle_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            description="Maximum time between frames of a stream, in seconds; then it is ended. 0:"
            " no limit.",
        ),
    ] = 0.0
    decode_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Time limit for decoding one image, in seconds, from when a thread starts"
            " it. Stuck threads are replaced, up to a limit.",
        ),
    ] = 10.0
    engine_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            le=10**6,
            description="Time limit for one batch, in seconds, or ten times its usual time if that"
            " is longer; then the engine counts as hung, and the server rejects requests and exits."
            " 0: no limit.",
        ),
    ] = 60.0
    drain_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            description="Graceful shutdown: time limit for requests in flight to finish after"
            " SIGTERM, in seconds.",
        ),
    ] = 30.0
