"""A proxy that passes HTTP requests on to a gateway, and keeps them."""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Of requests, and of answers; others are those of a connection.
KEPT = ("content-type", "content-encoding", "inference-header-content-length", "accept")
PASSED_BACK = ("content-type", "inference-header-content-length")


@contextmanager
def http_recorder(address: str) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Run a proxy before a gateway; give its recorded requests and its address.

    Args:
        address: The gateway's, host:port.
    """
    recorded: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: self.headers[name] for name in KEPT if name in self.headers}
            connection = http.client.HTTPConnection(address, timeout=60)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            recorded.append(
                {
                    "method": self.command,
                    "path": self.path,
                    "headers": headers,
                    "body": base64.b64encode(body).decode(),
                    "status": answer.status,
                }
            )
            self.send_response(answer.status)
            for name in PASSED_BACK:
                if (value := answer.getheader(name)) is not None:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _pass_on

        def log_message(self, format: str, *arguments: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield recorded, f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
