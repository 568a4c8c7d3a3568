"""The image's containers, called from outside; run in a network namespace of its own."""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.network import enter, run
from resnet50_client import Client, UnavailableError
from tests.support.certs import authority, chain, issue
from tests.support.deployments import Dockerfile
from tests.support.pictures import encode, picture

from .containers import OTHER_USER, READ_ONLY, Container, commands, phrase, started
from .engine import configure, podman

PNG = encode(picture())
SERVER, NAME = "127.0.0.1:50051", "models.example"
DRAIN_S = 30.0  # of --drain-timeout-s, by default
METRICS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=10).read().decode())
"""
# As Triton does for torch.compile on a machine with a GPU: compile C with Python's headers.
COMPILE = """
import ctypes, pathlib, sys
from triton.runtime import build
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
source = folder / "main.c"
source.write_text("#include <Python.h>\\nint number(void) { return PY_MAJOR_VERSION; }")
print(ctypes.CDLL(build._build("number", str(source), str(folder), [], [], [], [])).number())
"""


def plaintext(tag: str) -> Iterator[str]:
    """The first command of the page: the image's user, a new volume, plaintext on loopback."""
    with started(commands()[0], tag) as container:
        container.wait_until_healthy()
        (engine,) = re.findall(r"variant x is loaded: ([^,]+)", container.log)
        yield engine
        classified(Client(SERVER))
        assert "resnet50_requests_total" in container.run("python", "-c", METRICS)
        assert "CapEff:\t0000000000000000" in container.run("cat", "/proc/1/status")
        yield container.run("id")
        yield stopped_under_load(container)


def read_only_as_another_user(tag: str) -> Iterator[str]:
    """With a volume of its own: it cannot write to the caches of `plaintext`."""
    options = [
        *phrase(READ_ONLY),
        *phrase(OTHER_USER),
    ]
    volume = {"resnet50-weights": "resnet50-weights-1234"}
    with started(commands()[0], tag, options, volume) as container:
        container.wait_until_healthy()
        yield container.run("id")
        refused = container.run("touch", "/usr/x", "/home/x", "/var/x")
        assert refused.count("Read-only file system") == 3, refused
        classified(Client(SERVER))
        assert container.stop() == 0, container.log
        assert "cannot be written" not in container.log, container.log
        assert "Permission denied" not in container.log, container.log


def tls(tag: str, folder: Path) -> Iterator[str]:
    """The second command of the page: a certificate and a key that user 10001 can read."""
    ca = authority()
    leaf = issue(ca, NAME)
    (folder / "tls.crt").write_bytes(chain(leaf))
    (folder / "tls.key").write_bytes(leaf.private_key_pem.bytes())
    (folder / "ca.crt").write_bytes(ca.cert_pem.bytes())
    for path in (folder, *folder.iterdir()):
        os.chown(path, int(Dockerfile().user), 0)
        path.chmod(0o500 if path.is_dir() else 0o400)
    with started(commands()[1], tag, (), {"/etc/resnet50": str(folder)}) as container:
        container.wait_until_healthy()
        classified(Client(SERVER, ca=ca.cert_pem.bytes(), server_name=NAME))
        assert container.stop() == 0, container.log
        yield f"healthy as {NAME}"


def refusals(tag: str, more: dict[str, list[str]]) -> Iterator[str]:
    """Settings that cannot be served with: a message, and an exit code other than 0.

    Args:
        tag: Image.
        more: Options by the name of the setting that the message has to contain.
    """
    cases = {
        "variants": ["-e", "RESNET50_VARIANTS="],
        "allow_plaintext": ["-e", "RESNET50_ALLOW_PLAINTEXT=false"],
        **more,
    }
    for name, options in cases.items():
        with started(commands()[0], tag, options) as container:
            status, log = container.wait(), container.log.strip()
        assert status != 0 and name in log and "Traceback" not in log, f"{status} {log}"
        yield f"exit code {status}: {log.splitlines()[-1][:110]}"


def compiler(tag: str) -> Iterator[str]:
    cache = Dockerfile("cuda").environment["TRITON_CACHE_DIR"]
    with started(commands()[0], tag) as container:
        printed = container.run("python", "-c", COMPILE, cache)
    assert printed == "3", printed
    yield f"Triton compiles C into {cache}"


def classified(client: Client) -> None:
    with client:
        assert client.classify(PNG).variant.name == "x"


def stopped_under_load(container: Container) -> str:
    """Stop it while calls are in flight; each is answered or refused as unavailable."""
    outcomes: list[bool] = []
    failures: list[Exception] = []
    busy = threading.Event()

    def call() -> None:
        try:
            with Client(SERVER, retry=None) as client:
                while True:
                    client.classify(PNG)
                    outcomes.append(True)
                    busy.set()
        except UnavailableError:
            outcomes.append(False)
        except Exception as error:
            failures.append(error)
        finally:
            busy.set()

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    busy.wait()
    began = time.monotonic()
    status = container.stop()
    stop_s = time.monotonic() - began
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert status == 0 and stop_s < DRAIN_S, f"exit code {status}, {stop_s:.1f} s\n{container.log}"
    answered, refused = outcomes.count(True), outcomes.count(False)
    return f"stopped in {stop_s:.1f} s: {answered} calls answered, {refused} refused, exit code 0"


def main() -> int:
    """Print the outcomes of a target's containers; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=("cpu", "cuda"))
    parser.add_argument("tag")
    arguments = parser.parse_args()
    target, tag = arguments.target, arguments.tag
    folder = enter()
    run("ip", "link", "set", "lo", "up")
    # The addresses of bridges are this namespace's, and go with it.
    run("mount", "-t", "tmpfs", "none", "/var/lib/cni")
    configure()
    podman("volume", "prune", "--force")  # those of the last run
    device = {"cuda:0": ["-e", "RESNET50_DEVICE=cuda"]} if target == "cuda" else {}
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "plaintext": lambda: plaintext(tag),
        "read-only, another user": lambda: read_only_as_another_user(tag),
        "TLS": lambda: tls(tag, folder),
        "refused": lambda: refusals(tag, device),
    }
    if target == "cuda":
        checks["compiler"] = lambda: compiler(tag)
    failed = False
    for name, check in checks.items():
        try:
            for outcome in check():
                print(f"  {name}: {outcome}", flush=True)
        except Exception as error:  # the other checks still run
            print(f"  {name}: FAILED: {type(error).__name__}: {error}", flush=True)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
