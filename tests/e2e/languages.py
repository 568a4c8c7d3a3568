"""The examples in Node and Go, built, and run against real servers: `make languages`.

Each program makes each kind of call; its answers are compared with those of the SDK. The exit code
is 1 if one differs.

Not a test of pytest: it needs Node with npm, and Go with gRPC from Debian's packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import google.rpc.status_pb2
import grpc

from resnet50.v1 import inference_pb2
from resnet50_client import Client
from tests.support.certs import Files, authority, issue
from tests.support.pictures import encode, photo_like
from tests.support.serving import ServerProcess, server_processes

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BUILT = ROOT / ".cache" / "languages"
# Beside the modules of googleapis-common-protos are the protos.
GOOGLEAPIS = Path(google.rpc.status_pb2.__file__).parents[2]
GO_PACKAGE = "resnet50-go-example"
GO_LIBRARIES = "/usr/share/gocode"  # of Debian's golang-*-dev packages
PROGRAMS = ("npm", "go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
# Unavailable so often, then an answer; gRPC makes up to four attempts.
UNAVAILABLE = 2
# Images a second of a token: the second image comes within a pause of 5 s, on a loaded machine too.
RATE = 0.2
TIMEOUT_S = 120.0


class Done(NamedTuple):
    """A program that has ended."""

    status: int
    lines: list[str]


class Program:
    """An example, built.

    Args:
        command: Runs it.
        environment: Of the program, in addition to this process's.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment

    def run(self, address: str, *arguments: object) -> Done:
        """Return what it prints with a server's address and arguments."""
        done = subprocess.run(
            [*self._command, "--address", address, *map(str, arguments)],
            env=os.environ | self._environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
        )
        return Done(done.returncode, done.stdout.splitlines())


def node() -> Program:
    """Build the example in Node."""
    home = copied("node")
    environment = {"GOOGLEAPIS": str(GOOGLEAPIS), "PROTOS": str(ROOT / "protos")}
    # Scripts of packages are not needed, and not run.
    for arguments in (("ci", "--ignore-scripts", "--no-audit", "--no-fund"), ("run", "build")):
        command = ["npm", "--silent", *arguments]
        subprocess.run(command, cwd=home, env=os.environ | environment, check=True)
    return Program(["node", str(home / "dist" / "main.js")], {})


def go() -> Program:
    """Build the example in Go, without modules: with the libraries of Debian's packages."""
    home = copied("go", Path("go", "src", GO_PACKAGE))
    environment = {
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOPATH": f"{BUILT / 'go'}:{GO_LIBRARIES}",
        "GOCACHE": str(BUILT / "go-cache"),
        "GOOGLEAPIS": str(GOOGLEAPIS),
        "PROTOS": str(ROOT / "protos"),
    }
    program = home / GO_PACKAGE
    for arguments in (("generate",), ("vet", "."), ("build", "-o", str(program), ".")):
        subprocess.run(["go", *arguments], cwd=home, env=os.environ | environment, check=True)
    return Program([str(program)], {"GRPC_GO_RETRY": "on"})


LANGUAGES: dict[str, Callable[[], Program]] = {"node": node, "go": go}


def copied(name: str, place: Path | None = None) -> Path:
    """Copy an example's sources to where it is built, and what was built before is kept."""
    home = BUILT / (place or name)
    ignored = shutil.ignore_patterns("node_modules", "dist", "generated", "protos", "resnet50")
    shutil.copytree(EXAMPLES / name, home, dirs_exist_ok=True, ignore=ignored)
    return home


@contextmanager
def unavailable_at_first() -> Iterator[tuple[str, list[str]]]:
    """Run a server that is unavailable at first; give its address, and the methods called."""
    called: list[str] = []

    def classify(_: bytes, context: grpc.ServicerContext) -> bytes:
        if len(called) <= UNAVAILABLE:
            context.abort(grpc.StatusCode.UNAVAILABLE, "of a test")
        response = inference_pb2.ClassifyResponse()
        response.classification.categories.add(label="tench", probability=0.5)
        return response.SerializeToString()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            called.append(details.method)
            return grpc.unary_unary_rpc_method_handler(classify)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", called
    finally:
        server.stop(None).wait()


class Trial:
    """The calls of one program.

    Args:
        name: Of its language.
        program: The program.

    Attributes:
        failures: Descriptions of outcomes that are wrong.
    """

    def __init__(self, name: str, program: Program) -> None:
        self.failures: list[str] = []
        self.checks = 0
        self._name = name
        self._program = program

    def expect(
        self, case: str, address: str, *arguments: object, status: int = 0, lines: Sequence[str]
    ) -> None:
        """Run the program, and compare the beginnings of the lines that it prints."""
        done = self._program.run(address, *arguments)
        self.check(
            case,
            done.status == status
            and len(done.lines) == len(lines)
            and all(
                plain(line).startswith(plain(begin))
                for line, begin in zip(done.lines, lines, strict=True)
            ),
            f"status {done.status} and {done.lines}, not {status} and {list(lines)}",
        )

    def check(self, case: str, holds: bool, otherwise: str) -> None:
        """Count a check."""
        self.checks += 1
        if not holds:
            self.failures.append(f"{self._name}, {case}: {otherwise}")


def plain(line: str) -> str:
    """Return a line in which codes are spelled alike: each language's gRPC has its own way."""
    return line.replace("_", "").lower()


def make_calls(trial: Trial, server: str, guarded: str, folder: Path, token: str) -> None:
    """Make each kind of call.

    Args:
        trial: Counts.
        server: Address of a server.
        guarded: Address of one with TLS and tokens, and a rate of RATE images a second.
        folder: Has the images and the certificate.
        token: Of a caller.
    """
    photo, large, broken = folder / "photo.jpg", folder / "large.bmp", folder / "broken.jpg"
    with Client(server) as client:
        best = []
        for file in (photo, large):
            (category,) = client.classify(file, top_k=1).categories
            best.append(f"{category.label} {category.probability:.4f}")
    trial.expect("unary", server, "classify", photo, lines=[f"classify: {best[0]}"])
    trial.expect("upload", server, "upload", large, lines=[f"upload: {best[1]}"])
    frames = [f"frame 1: {best[0]}", "frame 2: INVALID_ARGUMENT image", f"frame 3: {best[0]}"]
    trial.expect("stream", server, "stream", photo, broken, photo, lines=frames)
    trial.expect(
        "error details",
        server,
        *("classify", broken),
        status=1,
        lines=["error: INVALID_ARGUMENT: image", "field: image"],
    )
    trial.expect(
        "deadline",
        server,
        *("--timeout", "0.001", "classify", photo),
        status=1,
        lines=["error: DEADLINE_EXCEEDED", "field: "],
    )
    secured = ("--ca", folder / "ca.pem", "--token")
    trial.expect(
        "wrong token",
        guarded,
        *(*secured, "wrong", "classify", photo),
        status=1,
        lines=["error: UNAUTHENTICATED: authorization", "field: "],
    )
    trial.expect(
        "TLS, token, and a retry after the time that the server gives",
        guarded,
        *(*secured, token, "classify", photo, photo),
        lines=[f"classify: {best[0]}", "overloaded: retry after ", f"classify: {best[0]}"],
    )
    with unavailable_at_first() as (address, called):
        trial.expect("retry", address, "classify", photo, lines=["classify: tench 0.5000"])
        attempts = len(called)
    trial.check("attempts", attempts == UNAVAILABLE + 1, f"made {attempts} attempts")


def start_servers(
    folder: Path, start: Callable[..., ServerProcess]
) -> tuple[str, str, dict[str, str]]:
    """Start two servers; return their addresses, and the token of each language for the second."""
    ca = authority()
    (folder / "ca.pem").write_bytes(ca.cert_pem.bytes())
    # Node warns of addresses as names of servers.
    files, tokens = Files(folder, issue(ca, "localhost")), folder / "tokens.toml"
    made = {}
    for name in LANGUAGES:
        command = [sys.executable, "-m", "resnet50_server", "tokens", "new", name, "--file", tokens]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        made[name] = done.stdout.split()[-1]
    variants = ("--variants", "untrained=random:0", "--engine", "torch", "--log-level", "warning")
    server = start(*variants)
    guarded = start(
        *variants,
        *("--tls-cert", str(files.cert), "--tls-key", str(files.key)),
        *("--tokens-file", str(tokens), "--max-rate-per-caller", str(RATE)),
    )
    address, secured = (one.wait_until_listening() for one in (server, guarded))
    return address, secured.replace("127.0.0.1", "localhost"), made


def main() -> int:
    """Build and run all programs; print what failed."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        sys.exit(f"{', '.join(missing)} missing; .ci/run has the packages of Debian")
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as directory, server_processes() as start:
        folder = Path(directory)
        (folder / "photo.jpg").write_bytes(encode(photo_like(400, 300), "JPEG"))
        (folder / "large.bmp").write_bytes(encode(photo_like(1600, 1200), "BMP"))
        (folder / "broken.jpg").write_bytes(b"no image")
        programs = {name: build() for name, build in LANGUAGES.items()}
        server, guarded, tokens = start_servers(folder, start)
        for name, program in programs.items():
            trial = Trial(name, program)
            make_calls(trial, server, guarded, folder, tokens[name])
            print(f"{name}: {trial.checks - len(trial.failures)} of {trial.checks} checks passed")
            failures += trial.failures
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
