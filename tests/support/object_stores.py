"""Stand-ins of stores of checkpoints: the Hugging Face Hub, S3 and Google Cloud Storage."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

NAME = "owner/pets"  # of the repository, or bucket and directory


class Store(http.server.BaseHTTPRequestHandler, ABC):
    """Serves the files of one directory; a subclass speaks the protocol of a store.

    Attributes:
        files: Contents by path.
        requests: Method and path of each request so far.
    """

    files: ClassVar[Mapping[str, bytes]]
    requests: ClassVar[list[str]]
    protocol_version = "HTTP/1.1"

    @abstractmethod
    def respond(self, path: str, query: dict[str, list[str]]) -> None:
        """Answer a request for a path."""

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        self.respond(unquote(parts.path), parse_qs(parts.query))

    do_HEAD = do_GET

    def send(
        self, content: bytes, kind: str = "application/octet-stream", status: int = 200
    ) -> None:
        """Answer with content, or with the range of it that was asked for."""
        headers = {"Content-Type": kind, "ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        if (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) is not None:
            start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Sat, 01 Aug 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_object(self, found: object, status: int = 200) -> None:
        """Answer with JSON."""
        self.send(json.dumps(found).encode(), "application/json", status)

    def log_message(self, *arguments: Any) -> None:
        pass


class Hub(Store):
    """The repository `NAME` of the Hugging Face Hub."""

    def respond(self, path: str, query: dict[str, list[str]]) -> None:
        if path.startswith(f"/api/models/{NAME}/tree/"):
            self.send_object(
                [
                    {"type": "file", "path": one, "size": len(content), "oid": "1" * 40}
                    for one, content in self.files.items()
                ]
            )
        elif re.fullmatch(rf"/api/models/{NAME}(/revision/main)?", path):
            self.send_object({"id": NAME, "sha": "2" * 40, "siblings": []})
        elif (content := self.files.get(path.removeprefix(f"/{NAME}/resolve/main/"))) is not None:
            self.send(content)
        else:
            self.send_object({"error": "Repository not found"}, 404)


class S3(Store):
    """The directory `NAME` of a bucket of S3."""

    def respond(self, path: str, query: dict[str, list[str]]) -> None:
        bucket, _, directory = NAME.partition("/")
        objects = {f"{directory}/{one}": content for one, content in self.files.items()}
        if path.strip("/") == bucket and "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            found = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>&quot;1&quot;"
                "</ETag><LastModified>2026-08-01T00:00:00Z</LastModified>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
                for key, content in objects.items()
                if key.startswith(prefix)
            )
            listing = f"<Name>{bucket}</Name><IsTruncated>false</IsTruncated>{found}"
            self.send(f"<ListBucketResult>{listing}</ListBucketResult>".encode(), "application/xml")
        elif (content := objects.get(path.removeprefix(f"/{bucket}/"))) is not None:
            self.send(content)
        else:
            error = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
            self.send(error, "application/xml", 404)


class GoogleStorage(Store):
    """The directory `NAME` of a bucket of Google Cloud Storage."""

    def respond(self, path: str, query: dict[str, list[str]]) -> None:
        bucket, _, directory = NAME.partition("/")
        objects = {f"{directory}/{one}": content for one, content in self.files.items()}
        root = f"/storage/v1/b/{bucket}/o"
        key = path.removeprefix("/download").removeprefix(root).removeprefix("/")
        if path == root:
            prefix = query.get("prefix", [""])[0]
            found = [self._described(one) for one in objects if one.startswith(prefix)]
            self.send_object({"items": found, "prefixes": []})
        elif key not in objects:
            self.send_object({"error": {"code": 404, "message": "none"}}, 404)
        elif query.get("alt") == ["media"]:
            self.send(objects[key])
        else:
            self.send_object(self._described(key))

    def _described(self, key: str) -> dict[str, str]:
        bucket, _, directory = NAME.partition("/")
        content = self.files[key.removeprefix(f"{directory}/")]
        root = f"http://{self.headers['Host']}/download/storage/v1/b/{bucket}/o"
        return {
            "name": key,
            "bucket": bucket,
            "size": str(len(content)),
            "updated": "2026-08-01T00:00:00.000Z",
            "mediaLink": f"{root}/{quote(key, '')}?alt=media",
        }


@contextlib.contextmanager
def serving_store(kind: type[Store], files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve files; yield the address and the requests so far."""
    requests: list[str] = []
    handler = type(kind.__name__, (kind,), {"files": files, "requests": requests})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
