"""A network camera and a web server whose connections do what a test says."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator

Connection = Callable[["VideoServer", socket.socket], None]


class VideoServer:
    """Accepts connections one after the other, and serves each with the next of `connections`.

    Args:
        connections: Functions that serve one connection each; the last one serves the rest.

    Attributes:
        port: Where it listens.
        count: How many connections were accepted.
        over: Set when the test is over; connections that send nothing wait for it.
    """

    def __init__(self, *connections: Connection) -> None:
        self._connections = connections
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.count = 0
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def restart(self) -> None:
        """Listen again, at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._threads.append(threading.Thread(target=self._accept))
        self._threads[-1].start()

    def stop_listening(self) -> None:
        """Refuse further connections."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()

    def close(self) -> None:
        """End everything."""
        self.over.set()
        with contextlib.suppress(OSError):  # it does not listen
            self.stop_listening()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        listener = self._listener
        while not self.over.is_set():
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            number, self.count = self.count, self.count + 1
            serve = self._connections[min(number, len(self._connections) - 1)]
            thread = threading.Thread(target=self._serve, args=(serve, connected))
            self._threads.append(thread)
            thread.start()

    def _serve(self, serve: Connection, connected: socket.socket) -> None:
        with connected, contextlib.suppress(OSError):  # the client has gone
            serve(self, connected)


@contextlib.contextmanager
def video_server(*connections: Connection) -> Iterator[VideoServer]:
    """Run a server."""
    server = VideoServer(*connections)
    try:
        yield server
    finally:
        server.close()


def silent(content: bytes = b"") -> Connection:
    """Send this, then nothing, and keep the connection."""

    def serve(server: VideoServer, connected: socket.socket) -> None:
        connected.sendall(content)
        server.over.wait()

    return serve


def ending(content: bytes) -> Connection:
    """Send this, and end the connection."""
    return lambda _server, connected: connected.sendall(content)


def reset(connected: socket.socket) -> None:
    """Close a connection with a reset, once its data has arrived."""
    # Data that has not been read by the client is lost with a reset.
    connected.shutdown(socket.SHUT_WR)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def refusing(server: VideoServer, connected: socket.socket) -> None:
    """End the connection, and refuse all others."""
    server.stop_listening()


def file(content: bytes, *, until: int | None = None, ranges: bool = True) -> Connection:
    """Serve a file by HTTP.

    Args:
        content: The file.
        until: The connection is lost after this byte of the file; None for never.
        ranges: Requests for a part of the file are understood.
    """

    def serve(_server: VideoServer, connected: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            received = connected.recv(65536)
            if not received:
                return
            request += received
        start = 0
        if ranges and (wanted := re.search(rb"(?i)\r\nrange: bytes=(\d+)-", request)):
            start = int(wanted[1])
        head = f"HTTP/1.1 {'206 Partial Content' if start else '200 OK'}\r\n"
        head += f"Content-Length: {len(content) - start}\r\nConnection: close\r\n"
        if ranges:
            head += "Accept-Ranges: bytes\r\n"
            head += f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}\r\n"
        end = len(content) if until is None else max(start, until)
        connected.sendall(head.encode() + b"\r\n" + content[start:end])

    return serve
