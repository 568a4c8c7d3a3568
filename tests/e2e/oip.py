"""Public clients of the Open Inference Protocol against a real server: `make oip`.

Each client is installed into an environment of its own and makes its calls (`oip_*_session.py`)
through a recorder, over gRPC and over REST through a gateway. The results, refusals included,
become the tables of docs/how-to/open-inference-protocol.md; the requests, as the clients wrote
them, become oip_requests.json of tests/integration/server and tests/integration/gateway, which
`make test` sends again.

Not a test of pytest: the clients want other versions of protobuf than the server's environment has.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from tests.e2e.http_recorder import http_recorder
from tests.support.gateways import gateway
from tests.support.serving import server_processes

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".cache" / "oip"
PAGE = ROOT / "docs" / "how-to" / "open-inference-protocol.md"
RECORDED = ROOT / "tests" / "integration" / "server" / "oip_requests.json"
CLIENTS = {
    "tritonclient": ("tritonclient[grpc]==2.73.0", "pillow"),
    "kserve": ("kserve==0.21.0", "pillow"),
    "mlserver": ("mlserver==1.7.1", "pillow"),
}
# Over REST, through the gateway: the environment, and the clients by their names in its session.
REST_CLIENTS = {
    "tritonclient": ("tritonclient[http]==2.73.0", "pillow"),
    "kserve": ("kserve==0.21.0", "pillow"),
}
RECORDED_REST = ROOT / "tests" / "integration" / "gateway" / "oip_requests.json"
SESSIONS = Path(__file__).parent
BEGIN, END = "<!-- conformance: written by make oip -->", "<!-- end of conformance -->"
# Larger requests are made by tests instead of being kept.
MAX_RECORDED_BYTES = 16_384


class Recorder(grpc.GenericRpcHandler):
    """Passes calls on to a server, and keeps their requests.

    Args:
        address: The server's.

    Attributes:
        calls: Method, requests, and name of the status code of each call.
    """

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=options)
        self.calls: list[tuple[str, list[bytes], str]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of any method."""
        call = self._channel.stream_stream(details.method)

        def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            kept: list[bytes] = []

            def keep() -> Iterator[bytes]:
                for request in requests:
                    kept.append(request)
                    yield request

            left_s = context.time_remaining()  # beyond any calendar without a deadline
            timeout_s = left_s if left_s is not None and left_s < 3600 else None
            answers = call(keep(), timeout=timeout_s, metadata=_own(context))
            try:
                yield from answers
            except grpc.RpcError:
                context.set_code(answers.code())
                context.set_details(answers.details() or "")
            finally:
                self.calls.append((details.method, kept, answers.code().name))

        return grpc.stream_stream_rpc_method_handler(handle)


def _own(context: grpc.ServicerContext) -> list[tuple[str, str | bytes]]:
    """Return the metadata of a call that are not gRPC's own."""
    reserved = ("grpc-", "user-agent", ":")
    return [pair for pair in context.invocation_metadata() if not pair[0].startswith(reserved)]


@contextmanager
def recorder(address: str) -> Iterator[tuple[Recorder, str]]:
    """Run a recorder before a server; give its address."""
    handler = Recorder(address)
    options = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(8), handlers=[handler], options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield handler, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def interpreter(name: str, packages: tuple[str, ...]) -> Path:
    """Return the interpreter of an environment with packages, made on first use."""
    home = ENVIRONMENTS / name
    python = home / "bin" / "python"
    finished = home / "installed"
    if not finished.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        finished.touch()
    return python


def run_session(*command: Path | str) -> list[dict[str, str]]:
    """Make a client's calls; return how they went.

    Raises:
        SystemExit: The session ended with an error of its own.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout}{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def table(title: str, calls: list[dict[str, str]]) -> str:
    """Return the table of a client's calls."""
    rows = [f"| {title} | |", "|---|---|"]
    for call in calls:
        detail = call["detail"].splitlines()[0] if call["detail"] else ""
        detail = detail.split("; ")[0].replace("|", "\\|")
        code = call["outcome"].removeprefix("refused: ").removeprefix("StatusCode.")
        refused = f"`{code}`: {detail}" if code else detail
        outcome = "works" if call["outcome"] == "works" else refused
        rows.append(f"| {call['call']} | {outcome} |")
    return "\n".join(rows)


def run_rest_sessions(address: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Make the calls of the REST clients through a gateway; return requests and tables."""
    recorded: list[dict[str, Any]] = []
    tables = []
    with gateway(address) as url:
        for name, packages in REST_CLIENTS.items():
            python = interpreter(f"{name}-rest", packages)
            with http_recorder(url.removeprefix("http://")) as (requests, front):
                calls = run_session(python, SESSIONS / "oip_http_session.py", name, front)
            tables.append(table(f"`{packages[0]}` over REST", calls))
            print(f"{name} over REST: {len(calls)} calls, {len(requests)} requests")
            recorded += [
                {"client": name, **request}
                for request in requests
                if len(request["body"]) <= MAX_RECORDED_BYTES
            ]
    return recorded, tables


def main() -> int:
    """Run all sessions; write the page's tables and the recorded requests."""
    tables, recorded = [], []
    arguments = ("--variants", "IMAGENET1K_V2", "--engine", "null", "--oip")
    with server_processes() as start:
        address = start(*arguments).wait_until_listening()
        for name in CLIENTS:
            with recorder(address) as (handler, front):
                python = interpreter(name, CLIENTS[name])
                calls = run_session(python, SESSIONS / f"oip_{name}_session.py", front)
            tables.append(table(f"`{CLIENTS[name][0]}`", calls))
            print(f"{name}: {len(calls)} calls, {len(handler.calls)} RPCs")
            recorded += [
                {
                    "client": name,
                    "method": method,
                    "requests": [base64.b64encode(one).decode() for one in requests],
                    "code": code,
                }
                for method, requests, code in handler.calls
                if sum(map(len, requests)) <= MAX_RECORDED_BYTES
            ]
        requests, rest_tables = run_rest_sessions(address)
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    RECORDED_REST.write_text(json.dumps(requests, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    body = "\n\n".join([*tables, *rest_tables])
    PAGE.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
