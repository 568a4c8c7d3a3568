"""uvicorn's protocols with limits that it lacks: slow or large headers, floods, slow readers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from .settings import Settings

MAX_PIPELINED = 8
# Of one WebSocket message; websockets limits their bytes, not their number.
MAX_FRAGMENTS = 1024
# After a response to a request whose body is still arriving: closing at once would lose it.
LINGER_S = 2.0
_BODY = (b"content-length", b"transfer-encoding")


class HttpProtocol(HttpToolsProtocol):
    """A connection that is closed if its headers or its reading of responses take too long.

    Args:
        settings: Limits and timeouts.
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: uvicorn's.
        _loop: The event loop.
    """

    def __init__(
        self,
        settings: Settings,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = settings
        self._in_headers = True
        self._header_bytes = 0
        self._refused = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the connection if there are too many; start the time limit of its headers."""
        super().connection_made(transport)
        if len(self.connections) > self._settings.max_connections:
            transport.abort()
            return
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers; tell the request that is computed."""
        if (running := self._running) is not None and not running.response_complete:
            # uvicorn tells the last request that arrived, which others of a pipeline may be before.
            running.disconnected = True
            running.message_event.set()
        self._stop(self._header_timer)
        self._stop(self._send_timer)
        self._stop(self._linger_timer)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; refuse headers that are too large."""
        if self._refused or self.parser is None:
            return
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_timer is None:
                self._start_header_timer()
        super().data_received(data)
        if self._in_headers and self._header_bytes > self._settings.max_header_bytes:
            self._refuse_headers()

    def on_message_begin(self) -> None:
        """Count the headers of a new request."""
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Count the URL as a header."""
        self._header_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header that has been parsed."""
        self._header_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless its headers are too large or others are queued."""
        self._in_headers = False
        self._stop(self._header_timer)
        self._header_timer = None
        # Data of several requests may have been counted once as a whole, and by header.
        counted = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._refused:
            return
        if counted > self._settings.max_header_bytes:
            self._refuse_headers()
        elif self.parser.should_upgrade() and any(name in _BODY for name, _ in self.headers):
            # It would be read to its end before the upgrade, without a limit.
            self._refuse(400, "content-length: a request for an upgrade has no body")
        elif len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(503, f"more than {MAX_PIPELINED} requests are queued on this connection")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body."""
        if self._refused:
            return
        super().on_message_complete()
        if self._linger_timer is not None:
            self._stop(self._linger_timer)
            self._linger_timer = None
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Close the connection if the rest of a body that was not read takes long."""
        if self.cycle.more_body and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)
        super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to the WebSocket protocol."""
        if self._refused:
            return
        self._stop(self._header_timer)
        self._header_timer = None
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        """Start the time limit of a client that does not read its response."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self._settings.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that time limit."""
        self._stop(self._send_timer)
        self._send_timer = None
        super().resume_writing()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(
            self._settings.header_timeout_s, self.transport.abort
        )

    def _refuse_headers(self) -> None:
        limit = self._settings.max_header_bytes
        self._refuse(431, f"headers: have more than {limit} bytes, the limit (max_header_bytes)")

    def _refuse(self, status: int, reason: str) -> None:
        """Respond and close the connection."""
        self._refused = True
        content = f"{reason}\n".encode()
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: "
            + str(len(content)).encode()
            + b"\r\n\r\n"
            + content
        )
        self.loop.call_later(LINGER_S, self.transport.close)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket that is closed if its client does not read, or sends too many fragments.

    Args:
        settings: Timeouts.
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: uvicorn's.
        _loop: The event loop.
    """

    def __init__(
        self,
        settings: Settings,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._send_timeout_s = settings.send_timeout_s
        self._send_timer: asyncio.TimerHandle | None = None

    def handle_cont(self, event: Any) -> None:
        """Add a fragment to a message."""
        if len(self.frames) >= MAX_FRAGMENTS:
            self.conn.fail(1009, f"more than {MAX_FRAGMENTS} fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def pause_writing(self) -> None:
        """Stop reading, as pings are answered; start the time limit of the client."""
        super().pause_writing()
        self.transport.pause_reading()
        self._send_timer = self.loop.call_later(self._send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Read on."""
        super().resume_writing()
        self._stop_timer()
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None


def protocols(settings: Settings) -> tuple[type[asyncio.Protocol], type[asyncio.Protocol]]:
    """Return factories of the two protocols, which uvicorn takes for classes."""

    def http(**arguments: Any) -> HttpProtocol:
        return HttpProtocol(settings, **arguments)

    def websocket(**arguments: Any) -> WebSocketProtocol:
        return WebSocketProtocol(settings, **arguments)

    return cast("type[asyncio.Protocol]", http), cast("type[asyncio.Protocol]", websocket)
