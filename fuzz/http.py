"""Mutated HTTP requests through a live gateway: python -m fuzz.http [--requests N] [--seed N].

A gateway process in front of a server with the null engine. Each request is made of the seed and
its number alone: a valid request of one of the gateway's APIs, then changed as bytes, as lines of
its head, or as JSON. Required: every request is answered or its connection is closed, no
answer is a server error of the gateway, good requests in between are answered rightly, and in the
end the gateway still runs, holds about as much memory as before, and its log has no traceback.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from resnet50.v1 import image_pb2, inference_pb2
from tests.support.gateways import GatewayProcess, client
from tests.support.pictures import encode, picture
from tests.support.serving import server_processes

SENDERS = 24
GOOD_EVERY = 50
# An answer, or the end of the connection, has arrived by then.
ANSWER_S = 30.0
LIMIT_S = 0.5
MAX_GROWTH_MIB = 96
OPTIONS = (
    *("--header-timeout-s", f"{LIMIT_S}", "--body-idle-timeout-s", f"{LIMIT_S}"),
    *("--body-timeout-s", "5", "--send-timeout-s", "5"),
)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_BYTES = (b"\0", b"\r\n", b"\n", b"\xff", b":", b" ", b"%00", b"../", b"[", b"{", b'"', b"9" * 40)
_HEADERS = (
    *(b"Content-Length: 5", b"Content-Length: 99999999999", b"Content-Length: -1"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Expect: 100-continue"),
    *(b"Content-Encoding: gzip", b"Connection: close", b"Upgrade: websocket", b"Upgrade: h2c"),
    *(b"Content-Type: multipart/form-data; boundary=x", b"Content-Type: application/json"),
    *(b"Content-Type: application/grpc-web-text", b"Inference-Header-Content-Length: 7"),
    *(b"X-Timeout-Ms: 1", b"Connect-Timeout-Ms: 0", b"Grpc-Timeout: 1x", b"Host:"),
    *(b"Authorization: Bearer \xc3\xa9", b"X-Caller-Key: ", b"X-Priority: urgent"),
    *(b"Accept: application/octet-stream", b"Origin: null", b"X-A: " + b"a" * 17_000),
)
_VALUES: tuple[Any, ...] = (None, True, -1, 2**70, 1e308, "", "x" * 5000, [], {}, [[]], "data:,")


@dataclass
class Report:
    """Outcome of the requests.

    Attributes:
        statuses: Of the answers; "closed" for connections that ended without one.
        good: Good requests that were answered rightly.
        findings: Promises that were broken.
        memory_mib: Of the gateway, before and after.
        took_s: In seconds.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    good: int = 0
    findings: list[str] = field(default_factory=list)
    memory_mib: tuple[float, float] = (0.0, 0.0)
    took_s: float = 0.0


def seeds() -> list[bytes]:
    """Return a valid request of each API."""
    image = encode(picture(32, 24), "JPEG")
    text = base64.b64encode(image).decode()
    form = b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n" + image
    classify = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=image))
    message = classify.SerializeToString()
    element = len(image).to_bytes(4, "little") + image
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES"}
    header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(element)}}]})
    service = "/resnet50.v1.InferenceService"
    multipart = "multipart/form-data; boundary=x"
    as_json = "application/json"
    return [
        _request("POST", "/v1/classify?top_k=3", image, "image/jpeg"),
        _request("POST", "/v1/embed?l2_normalize=true", image, "image/jpeg"),
        _request("POST", "/v1/classify", form + b"\r\n--x--\r\n", multipart),
        _request("POST", "/v1/embed:batch", (form + b"\r\n") * 3 + b"--x--\r\n", multipart),
        _request("POST", f"{service}/Classify", {"image": {"encoded": text}}, as_json),
        _request("POST", f"{service}/Embed", message, "application/proto"),
        _request(
            "POST",
            f"{service}/Classify",
            b"\0" + len(message).to_bytes(4, "big") + message,
            "application/grpc-web+proto",
        ),
        _request("POST", "/resnet50.v1.VariantService/GetVariant", {"name": "x"}, as_json),
        _request("POST", "/vectors", {"id": "1_0", "image": text}, as_json),
        _request(
            "POST",
            "/v1/embeddings",
            {"model": "", "input": [{"image": f"data:image/jpeg;base64,{text}"}]},
            as_json,
        ),
        _request(
            "POST", "/v2/models/resnet50/infer", {"inputs": [{**tensor, "data": [text]}]}, as_json
        ),
        _request(
            "POST",
            "/v2/models/resnet50/infer",
            header.encode() + element,
            f"application/octet-stream\r\nInference-Header-Content-Length: {len(header)}",
        ),
        _request("POST", "/v2/repository/index", {"ready": True}, as_json),
        *(
            _request("GET", path, b"", "text/plain")
            for path in ("/v1/variants", "/openapi.json", "/docs", "/console/", "/v2", "/readyz")
        ),
        b"GET /v1/stream?top_k=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket"
        b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        b"\x82\x89\0\0\0\0\0\0\0\0\0\0\0\1x",
    ]


def _request(method: str, path: str, body: bytes | dict[str, Any], content_type: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def mutated(request: bytes, draw: Random) -> bytes:
    """Return a request with one to three changes."""
    for _ in range(draw.randint(1, 3)):
        request = draw.choice((_change_bytes, _change_head, _change_json))(request, draw)
    return request


def _change_bytes(request: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(request) + 1)
    kind = draw.randrange(5)
    if kind == 0:
        return request[:at]
    if kind == 1:
        return request[:at] + draw.choice(_BYTES) + request[at:]
    if kind == 2:
        return request[:at] + draw.randbytes(draw.randint(1, 8)) + request[at + 4 :]
    if kind == 3:
        return request[:at] + request[at + draw.randint(1, 64) :]
    return request[:at] + request[max(0, at - draw.randint(1, 256)) :]


def _change_head(request: bytes, draw: Random) -> bytes:
    head, gap, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    kind = draw.randrange(5)
    at = draw.randrange(len(lines))
    if kind == 0:
        lines.insert(max(1, at), draw.choice(_HEADERS))
    elif kind == 1:
        lines[at] = draw.choice(_HEADERS)
    elif kind == 2:
        lines.append(lines[at])
    elif kind == 3:
        path = b" /" + draw.randbytes(draw.randint(0, 40))
        lines[0] = re.sub(rb" \S+", lambda _: path, lines[0], count=1)
    else:
        del lines[at]
    return b"\r\n".join(lines) + gap + body


def _change_json(request: bytes, draw: Random) -> bytes:
    """Change a member of a JSON body, and correct its length; other requests stay as they are."""
    head, gap, body = request.partition(b"\r\n\r\n")
    try:
        content = json.loads(body)
    except ValueError:
        return request
    node: Any = content
    while isinstance(node, (dict, list)) and node:
        key: Any = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if not isinstance(node[key], (dict, list)) or draw.random() < 0.3:
            kind = draw.randrange(3)
            if kind == 0:
                node[key] = draw.choice(_VALUES)
            elif kind == 1 and isinstance(node, dict):
                node[draw.choice(("extra", "image", "data", "\ud800", ""))] = draw.choice(_VALUES)
            else:
                del node[key]
            break
        node = node[key]
    changed = json.dumps(content).encode()
    length = f"Content-Length: {len(changed)}".encode()
    return re.sub(rb"Content-Length: [^\r]*", length, head) + gap + changed


def exchange(host: str, port: int, request: bytes) -> str:
    """Send a request on a connection of its own; return the status, or "closed".

    Raises:
        TimeoutError: Neither an answer nor the end of the connection arrives.
    """
    with socket.create_connection((host, port), timeout=ANSWER_S) as opened:
        answer = b""
        try:
            opened.sendall(request)
            while not _complete(answer):
                part = opened.recv(65536)
                if not part:
                    break
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            pass
    found = _STATUS.match(answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
    return found[1].decode() if found else "closed"


def _complete(answer: bytes) -> bool:
    head, gap, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if not gap:
        return False
    if length is None:
        return b"101 " in head[:16] or body.endswith(b"0\r\n\r\n") or b" 204 " in head[:16]
    return len(body) >= int(length[1])


def run(requests: int, seed: int = 1) -> Report:
    """Send mutated requests; return the outcome."""
    report = Report()
    started = time.monotonic()
    lock = threading.Lock()
    with server_processes() as start:
        arguments = ("--variants", "IMAGENET1K_V2", "--engine", "null", "--oip")
        server = start(*arguments).wait_until_listening()
        gateway = GatewayProcess("--server", server, *OPTIONS)
        url = gateway.wait_until_listening()
        host, _, port = url.removeprefix("http://").rpartition(":")
        originals, numbers = seeds(), iter(range(requests))

        def send() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                draw = Random(f"{seed}/{number}")
                request = mutated(draw.choice(originals), draw)
                try:
                    status = exchange(host, int(port), request)
                except OSError as error:
                    status = f"{type(error).__name__}"
                with lock:
                    report.statuses[status] += 1
                    if (
                        status not in ("501", "503", "504")
                        and (status >= "5")
                        and status != "closed"
                    ):
                        report.findings.append(f"request {number}: {status}: {request[:200]!r}")
                if number % GOOD_EVERY == 0:
                    good = exchange(host, int(port), originals[number % 6])
                    with lock:
                        report.good += good == "200"
                        if good != "200":
                            report.findings.append(f"a good request after {number}: {good}")

        for original in originals[:6] * 4:
            exchange(host, int(port), original)
        before = _memory_mib(gateway.process.pid)
        threads = [threading.Thread(target=send) for _ in range(SENDERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with client(url) as http:
            if http.get("/readyz").status_code != 200:
                report.findings.append("the gateway is not ready in the end")
        report.memory_mib = before, _memory_mib(gateway.process.pid)
        if report.memory_mib[1] - before > MAX_GROWTH_MIB:
            report.findings.append(f"memory grew from {before:.0f} MiB: {report.memory_mib}")
        code, errors = gateway.terminate()
        if code != 0 or "Traceback" in errors:
            report.findings.append(f"exit code {code}, log: {errors[-2000:]}")
    report.took_s = time.monotonic() - started
    return report


def _memory_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")


def main() -> int:
    """Send mutated requests and print the outcome; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = run(options.requests, options.seed)
    print(f"{sum(report.statuses.values())} requests in {report.took_s:.0f} s")
    print("answers:", ", ".join(f"{key}: {n}" for key, n in sorted(report.statuses.items())))
    print(f"good requests answered rightly meanwhile: {report.good}")
    print(f"memory of the gateway: {report.memory_mib[0]:.0f} -> {report.memory_mib[1]:.0f} MiB")
    for finding in report.findings[:20]:
        print("FOUND", finding)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
