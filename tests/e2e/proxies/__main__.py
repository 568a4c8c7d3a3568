"""The load balancers of deploy/ before two servers, tried for real: `make proxies`.

With each of nginx, HAProxy and Envoy, in plaintext and with TLS to clients, single calls go to
servers that record how they arrive (see `checks`). Then calls of every shape go through it without
a pause, from both clients, while one server is drained and started again, then the other, then one
is killed, and at last the load balancer is reloaded. The exit code is 1 if a check fails, a call
fails, an answer of a stream is missing or out of turn, or one server gets no calls.

Not a test of pytest: nginx comes from `apt-get install nginx`, the others from the extra
[proxies].
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.proxies import trial
from tests.e2e.proxies.balancers import BALANCERS, Addresses, Balancer, Tls
from tests.e2e.proxies.checks import check_all
from tests.support.certs import authority, chain, issue


def certificate(folder: Path) -> Tls:
    """Write a certificate for 127.0.0.1."""
    ca = authority()
    leaf = issue(ca)
    tls = Tls(folder / "tls.crt", folder / "tls.key", folder / "tls.pem", ca.cert_pem.bytes())
    tls.certificate.write_bytes(chain(leaf))
    tls.key.write_bytes(leaf.private_key_pem.bytes())
    tls.both.write_bytes(chain(leaf) + leaf.private_key_pem.bytes())
    return tls


def failures(balancer: Balancer, folder: Path, only_checks: bool) -> Iterator[str]:
    """Try one; give descriptions of the failures."""
    for tls in (None, certificate(folder)):
        title = f"{balancer.name}, {'plaintext' if tls is None else 'TLS'}"
        print(f"  {title}", flush=True)
        addresses = Addresses.free()
        inner = folder / ("plaintext" if tls is None else "tls")
        inner.mkdir()
        with balancer.running(addresses, inner, tls) as running:
            failed = check_all(running, addresses, tls)
            if failed:
                print(f"end of the log:\n{running.log()[-2000:]}", file=sys.stderr)
        yield from (f"{title}: {one}" for one in failed)
    if not only_checks:
        inner = folder / "trial"
        inner.mkdir()
        if failed_calls := trial.run(balancer, inner):
            yield f"{balancer.name}: {failed_calls} failed calls"


def main() -> int:
    """Print the outcomes; return the exit code."""
    names = [balancer.name for balancer in BALANCERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"default: {' '.join(names)}")
    parser.add_argument("--only-checks", action="store_true", help="no trial with many calls")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(names)}")
    failed: list[str] = []
    for balancer in BALANCERS:
        if arguments.names and balancer.name not in arguments.names:
            continue
        began = time.monotonic()
        print(f"{balancer.name}: {balancer.program()}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"resnet50-{balancer.name}-") as folder:
            failed += failures(balancer, Path(folder), arguments.only_checks)
        print(f"{balancer.name}: {time.monotonic() - began:.0f} s", flush=True)
    for one in failed:
        print(one, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
