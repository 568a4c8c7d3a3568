"""A client that speaks HTTP/2 as it likes: it may grant no window, or send half a message."""

from __future__ import annotations

import socket
import struct

import h2.config
import h2.connection
import h2.events
import h2.settings

MAX_FRAME_BYTES = 16_384


def message(content: bytes, declared: int | None = None) -> bytes:
    """Return a gRPC message of `content`, or of more bytes if that many are declared."""
    return b"\0" + struct.pack(">I", len(content) if declared is None else declared) + content


class RawClient:
    """One connection; blocks, so not for an event loop.

    Args:
        address: host:port, without TLS.
        window: Bytes that it takes of each answer before it grants more, which it never does by
            itself; None for HTTP/2's default.
        source: The address that it calls from; chosen by the system if empty.
    """

    def __init__(self, address: str, window: int | None = None, source: str = "") -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), source_address=(source, 0))
        self.http2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self.http2.initiate_connection()
        if window is not None:
            self.http2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.flush()
        while not self.events(1.0):  # the server's settings say how many calls it takes
            pass

    def close(self) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.http2.data_to_send())

    def open(self, path: str, content: bytes | None = None, **metadata: str) -> int:
        """Begin a call; with `content`, send it as the only message. Returns its stream."""
        stream = self.http2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata.items(),
        ]
        self.http2.send_headers(stream, headers)
        if content is not None:
            self.http2.send_data(stream, message(content), end_stream=True)
        return stream

    def events(self, timeout_s: float) -> list[h2.events.Event]:
        """Return what has arrived, waiting so long for the first bytes.

        Raises:
            ConnectionError: The server has closed the connection.
        """
        self.socket.settimeout(timeout_s)
        try:
            content = self.socket.recv(1 << 20)
        except TimeoutError:
            return []
        if not content:
            raise ConnectionError("closed by the server")
        events = self.http2.receive_data(content)
        self.flush()
        return events

    def send(self, stream: int, content: bytes, timeout_s: float) -> int:
        """Send as much as the server grants; return how many bytes it took before it stopped."""
        sent = 0
        while sent < len(content):
            length = min(
                self.http2.local_flow_control_window(stream), MAX_FRAME_BYTES, len(content) - sent
            )
            if length > 0:
                self.http2.send_data(stream, content[sent : sent + length])
                sent += length
                self.flush()
                continue
            events = self.events(timeout_s)
            ended = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)
            if not events or any(isinstance(event, ended) for event in events):
                break
        return sent
