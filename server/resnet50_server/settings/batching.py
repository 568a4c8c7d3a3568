"""The group of batching."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from resnet50_settings.groups import Group


class Batching(Group):
    """Dynamic batching and its queue."""

    title = "Batching"

    max_batch_size: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Maximum batch size: images that dynamic batching computes together.",
        ),
    ] = 32
    max_queue_delay_ms: Annotated[
        float,
        Field(
            ge=0,
            le=10_000,
            description="Batch window: maximum time that an idle engine waits for a batch to fill,"
            " in milliseconds.",
        ),
    ] = 0.0
    max_queue_size: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum queued single-image requests per variant; further ones are"
            " rejected. Frames of streams do not count.",
        ),
    ] = 512
    max_queue_wait_s: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum expected queueing time of a request without a deadline, in"
            " seconds; beyond it the request is rejected.",
        ),
    ] = 30.0
