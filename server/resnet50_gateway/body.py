"""Bodies of requests: read within limits of size, time and memory; parts of forms."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.types import Message, Receive

from .problems import ClientDisconnected, Problem, invalid
from .settings import Settings

MULTIPART = "multipart/form-data"
MAX_PART_HEADER_BYTES = 4096
MAX_PART_HEADERS = 16
_LENGTH = re.compile(r"[0-9]{1,18}")


class BodyReader:
    """Reads bodies; all bodies in flight share `max_bodies_bytes` of memory.

    Args:
        settings: Limits and timeouts.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reserved = 0

    @asynccontextmanager
    async def read(self, request: Request, *, json: bool = False) -> AsyncIterator[bytes]:
        """Read the whole body; its memory is counted until the block ends.

        Args:
            request: Its body has not been read.
            json: Whether the limit of JSON holds, which is lower.

        Raises:
            Problem: It is too large, too slow, or there is no memory for it.
            ClientDisconnected: The client has disconnected.
        """
        limit, setting = self._settings.max_body_bytes, "max_body_bytes"
        if json and self._settings.max_json_bytes < limit:
            limit, setting = self._settings.max_json_bytes, "max_json_bytes"
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise Problem(
                "INVALID_ARGUMENT",
                f"content-encoding: is {encoding[:32]!r}, must be identity: images are compressed"
                " already; send the body as it is",
                field="content-encoding",
                status=415,
            )
        reserved = 0
        try:
            announced = request.headers.get("content-length", "")
            if _LENGTH.fullmatch(announced):
                _check_size(int(announced), limit, setting)  # before any of it is read
            content = bytearray()
            async for chunk in self._chunks(request.receive):
                # Counted as it arrives: announced bytes take no memory.
                self._reserve(len(chunk))
                reserved += len(chunk)
                content += chunk
                _check_size(len(content), limit, setting)
            yield bytes(content)
        finally:
            self._reserved -= reserved

    def _reserve(self, size: int) -> None:
        limit = self._settings.max_bodies_bytes
        if self._reserved + size > limit:
            raise Problem(
                "UNAVAILABLE",
                f"body: all bodies in flight would have {self._reserved + size} bytes, more than"
                f" {limit} (max_bodies_bytes); retry in 1 s",
                field="body",
                limit=limit,
                retry_after_s=1.0,
            )
        self._reserved += size

    async def _chunks(self, receive: Receive) -> AsyncIterator[bytes]:
        settings = self._settings
        ends_at = time.monotonic() + settings.body_timeout_s
        more = True
        while more:
            limit_s = min(settings.body_idle_timeout_s, ends_at - time.monotonic())
            try:
                message = await _within(max(0.0, limit_s), receive)
            except TimeoutError:
                raise Problem(
                    "DEADLINE_EXCEEDED",
                    f"body: it paused for {settings.body_idle_timeout_s:g} s"
                    f" (body_idle_timeout_s) or took {settings.body_timeout_s:g} s"
                    " (body_timeout_s); send it faster",
                    field="body",
                    limit=settings.body_idle_timeout_s,
                    status=408,
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            if chunk := message.get("body", b""):
                yield chunk
            more = message.get("more_body", False)


async def _within(limit_s: float, receive: Receive) -> Message:
    """Return the next message; not by `wait_for`, which makes a task on Python below 3.12.

    Raises:
        TimeoutError: There is none in time.
    """
    task, late = asyncio.current_task(), False
    assert task is not None

    def on_timeout() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(limit_s, on_timeout)
    try:
        return await receive()
    except asyncio.CancelledError:
        if not late:
            raise
        raise TimeoutError from None
    finally:
        timer.cancel()


def parts_of(content: bytes, content_type: str, max_parts: int) -> list[tuple[str, bytes]]:
    """Return names and contents of the parts of a multipart/form-data body, in order.

    Args:
        content: The body.
        content_type: With the boundary.
        max_parts: The most that there may be.

    Raises:
        Problem: It is malformed, or has more parts.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise invalid("content-type", "multipart/form-data without a boundary; name it")
    collector = _PartCollector(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            collector.callbacks(),  # type: ignore[arg-type]  # a TypedDict of functions
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_PART_HEADER_BYTES,
        )
        parser.write(content)
        parser.finalize()
    except MultipartParseError as error:
        raise invalid("body", f"is no valid multipart/form-data: {error}") from None
    if not collector.ended:
        raise invalid("body", "multipart/form-data ends before its last boundary; send all of it")
    return collector.parts


class _PartCollector:
    """Callbacks of the parser of forms.

    Args:
        max_parts: The most that there may be.

    Attributes:
        parts: Name and content of each part.
        ended: Whether the last boundary has been read.
    """

    def __init__(self, max_parts: int) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.ended = False
        self._max_parts = max_parts
        self._name: str | None = None
        self._content = bytearray()
        self._header = bytearray()
        self._value = bytearray()

    def callbacks(self) -> dict[str, Any]:
        """Return the functions that the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_header,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise Problem(
                "INVALID_ARGUMENT",
                f"body: has more than {self._max_parts} parts, the limit (max_images); send fewer",
                field="body",
                limit=self._max_parts,
            )
        self._name = None
        self._content = bytearray()

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            name = options.get(b"name")
            self._name = None if name is None else name.decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._content += memoryview(data)[start:end]

    def _end_part(self) -> None:
        if self._name is None:
            raise invalid("body", f"part {len(self.parts)} has no name; name it 'image'")
        self.parts.append((self._name, bytes(self._content)))

    def _end(self) -> None:
        self.ended = True


def _check_size(size: int, limit: int, setting: str) -> None:
    if size > limit:
        raise Problem(
            "INVALID_ARGUMENT",
            f"body: has {size} bytes or more, the limit is {limit} ({setting}); send less",
            field="body",
            limit=limit,
            status=413,
        )
