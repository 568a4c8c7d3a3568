"""Compare model servers: python -m benchmarks.compare; `make compare` runs it.

It writes docs/benchmarks/comparison.md, comparison.json and docs/images/comparison.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from benchmarks.compare.answers import make_images, make_variant, reference
from benchmarks.compare.environments import CACHE, ROOT, InstallError, install, versions
from benchmarks.compare.measure import Bench, Result, open_rate, to_json
from benchmarks.compare.peers import PEERS, Peer
from benchmarks.compare.report import NETWORKS, Run, page, plot
from resnet50_bench.environment import machine
from resnet50_server.runtime.cpus import cpus

PAGES = ROOT / "docs" / "benchmarks"


def prepare(peer: Peer) -> tuple[Path, str, str]:
    """Return the Python of a peer's environment, its versions, and why it is not installed."""
    if peer.ours:
        return Path(sys.executable), f"resnet50-serving {version('resnet50-serving')}", ""
    print(f"installing {peer.name}", file=sys.stderr)
    try:
        python = install(peer.key, peer.packages)
        return python, versions(python, peer.packages), ""
    except InstallError as error:
        return Path(), "", f"not installed: {error}"


def main() -> None:
    """Measure, and write the page."""
    keys = [peer.key for peer in PEERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", help=f"separated by commas; default: all of {','.join(keys)}")
    parser.add_argument("--seconds", type=float, default=6.0, help="per load, default 6")
    parser.add_argument("--turns", type=int, default=3, help="default 3")
    options = parser.parse_args()
    asked = options.peers.split(",") if options.peers else keys
    if unknown := set(asked) - set(keys):
        parser.error(f"--peers: {', '.join(sorted(unknown))}: not among {', '.join(keys)}")
    peers = [peer for peer in PEERS if peer.key in asked]

    load_average = os.getloadavg()[0]
    ready = {peer.name: prepare(peer) for peer in peers}
    folder = CACHE / "data"
    folder.mkdir(parents=True, exist_ok=True)
    images = make_images(folder)
    weights = make_variant(folder / "variant", images)
    bench = Bench(
        images, weights, reference(weights, images), options.seconds, CACHE / "servers.log"
    )
    results, rates = [], {}
    for network in NETWORKS:
        # Our engines differ in the network alone.
        some = [peer for peer in peers if network != "stub" or not peer.ours or peer.flags]
        of_network = []
        for peer in some:
            _, used, failure = ready[peer.name]
            name, settings = peer.name, peer.settings
            if peer.ours and network == "stub":
                name, settings = "this", "`--engine null`, otherwise the same"
            of_network.append(Result(name, network, settings, used, failure=failure))
        rate = 0.0
        for turn in range(options.turns):
            for peer, result in zip(some, of_network, strict=True):
                if not result.failure:
                    print(f"{network}, turn {turn + 1}: {peer.name}", file=sys.stderr)
                    bench.turn(peer, ready[peer.name][0], result, rate)
            # The first turn finds the rate of arrivals for the others.
            rate = rate or open_rate([one for one in of_network if not one.failure])
        rates[network] = rate
        results += of_network
    where = machine()
    run = Run(
        command=shlex.join(["python", "-m", "benchmarks.compare", *sys.argv[1:]]),
        machine=f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB,"
        f" {where['system']}",
        versions=f"torch {version('torch')}, torchvision {version('torchvision')}",
        date=datetime.now(timezone.utc).date().isoformat(),
        threads=cpus(),
        turns=options.turns,
        seconds=options.seconds,
        rates=rates if options.turns > 1 else {},
        load_average=load_average,
        environment="OMP_WAIT_POLICY=PASSIVE",
    )
    values = {"run": asdict(run), "results": to_json(results)}
    (PAGES / "comparison.json").write_text(json.dumps(values, indent=1) + "\n")
    (PAGES / "comparison.md").write_text(page(results, run))
    (ROOT / "docs" / "images" / "comparison.svg").write_text(plot(results))


if __name__ == "__main__":
    main()
