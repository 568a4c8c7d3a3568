"""Types of streams, as mypy and pyright see them; checked, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from typing_extensions import assert_type

from resnet50_client import (
    AsyncClient,
    AsyncStream,
    Classification,
    Client,
    Embedding,
    FrameAnswer,
    Stream,
    StreamStats,
    VideoFrame,
    frames_from_raw,
)


def blocking(client: Client, frames: Iterator[VideoFrame]) -> None:
    """Check the stream of the blocking client."""
    stream = client.classify_stream(frames, delivery="latest")
    assert_type(stream, Stream[Classification])
    with stream as entered:
        assert_type(entered, Stream[Classification])
    for answer in stream:
        assert_type(answer, FrameAnswer[Classification])
        assert_type(answer.result, Classification | None)
        assert_type(answer.frame_id, int)
        assert_type(answer.replaced_by, int | None)
        assert_type(answer.source, Any)
    assert_type(stream.stats, StreamStats)
    assert_type(stream.cancel(), None)
    assert_type(stream.close(), None)
    assert_type(next(client.embed_stream(["cat.jpg"])), FrameAnswer[Embedding])
    answers: Iterator[FrameAnswer[Embedding]] = client.embed_stream(["cat.jpg"])
    del answers


async def asynchronous(client: AsyncClient, frames: AsyncIterator[bytes]) -> None:
    """Check the stream of the asyncio client."""
    stream = client.embed_stream(frames)
    assert_type(stream, AsyncStream[Embedding])
    async with stream as entered:
        assert_type(entered, AsyncStream[Embedding])
    async for answer in stream:
        assert_type(answer, FrameAnswer[Embedding])
    assert_type(stream.stats, StreamStats)
    assert_type(stream.cancel(), None)
    await stream.aclose()
    answers: AsyncIterator[FrameAnswer[Embedding]] = client.embed_stream(["cat.jpg"])
    del answers


def wrong(client: Client, frames: AsyncIterator[bytes]) -> None:
    """Check that mistakes are found: an ignored error that is none is one."""
    client.classify_stream(frames)  # type: ignore[arg-type]
    client.classify_stream([b""], delivery="newest")  # type: ignore[arg-type]
    frames_from_raw("video.rgb", 640, 480)  # type: ignore[arg-type]
