"""Compare model servers: python -m benchmarks.compare; `make compare` runs it.

It writes docs/benchmarks/comparison.md, data/comparison.json beside it, after each server, and
docs/images/comparison.svg. With --only it replaces the rows of some servers and keeps the others.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.compare.answers import make_images, make_variant, reference
from benchmarks.compare.environments import CACHE, ROOT, InstallError, install, versions
from benchmarks.compare.measure import Bench, generator, open_rate
from benchmarks.compare.peers import PEERS, Peer
from benchmarks.compare.plot import plot
from benchmarks.compare.report import NETWORKS, page
from benchmarks.compare.results import Result, Run, load, save
from resnet50_bench.environment import machine
from resnet50_server.runtime.cpus import cpus

PAGES = ROOT / "docs" / "benchmarks"
DATA = PAGES / "data" / "comparison.json"
QUICK = CACHE / "quick"


def options() -> argparse.Namespace:
    """Return the command line."""
    keys = [peer.key for peer in PEERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        metavar="PEER",
        help=f"measure these, separated by commas, and keep the other rows; of {','.join(keys)}",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="per load, default 4")
    parser.add_argument("--turns", type=int, default=3, help="default 3")
    parser.add_argument(
        "--quick", action="store_true", help=f"1 turn of 1 s; write into {QUICK.relative_to(ROOT)}"
    )
    parser.add_argument("--redraw", action="store_true", help="only write page and plot again")
    parser.add_argument("--install", action="store_true", help="only install the peers")
    asked = parser.parse_args()
    asked.peers = asked.only.split(",") if asked.only else keys
    if unknown := set(asked.peers) - set(keys):
        parser.error(f"--only: {', '.join(sorted(unknown))}: not among {', '.join(keys)}")
    if asked.quick:
        asked.seconds, asked.turns = 1.0, 1
    return asked


class Ready(NamedTuple):
    """An installed peer.

    Attributes:
        python: Of its environment.
        versions: Of its packages.
        failure: Reason why it is not installed; "" if it is.
    """

    python: Path
    versions: str
    failure: str = ""


def prepare(peer: Peer) -> Ready:
    """Install a peer."""
    if peer.ours:
        return Ready(Path(sys.executable), f"resnet50-serving {version('resnet50-serving')}")
    print(f"installing {peer.name}", file=sys.stderr)
    try:
        python = install(peer.packages)
        return Ready(python, versions(python, peer.packages))
    except InstallError as error:
        return Ready(Path(), "", f"not installed: {error}")


def blank(peer: Peer, network: str) -> Result:
    """Return the result of a peer before its first turn."""
    if peer.ours and network == "stub":
        return Result("this", network, "`--engine null`, otherwise the same")
    return Result(peer.name, network, peer.settings)


def plan(ready: dict[Peer, Ready], kept: list[Result]) -> dict[tuple[Peer, str], Result]:
    """Return the results in the order of the page.

    Args:
        ready: Peers that are measured, whose results are blank.
        kept: Results of an earlier run, which the others keep.
    """
    known = {(one.name, one.network): one for one in kept}
    now = datetime.now(timezone.utc).isoformat(" ", "minutes")[:16]
    results = {}
    for network in NETWORKS:
        for peer in PEERS:
            if network == "stub" and peer.ours and peer != PEERS[0]:
                continue  # the stub replaces our engines
            result = blank(peer, network)
            if peer in ready:
                result.versions, result.failure = ready[peer].versions, ready[peer].failure
                result.measured = now
            elif (result.name, network) in known:
                result = known[result.name, network]
            else:
                continue
            results[peer, network] = result
    return results


def measure(
    bench: Bench,
    results: dict[tuple[Peer, str], Result],
    ready: dict[Peer, Ready],
    turns: int,
    rates: dict[str, float],
    written: Callable[[], None],
) -> None:
    """Measure in turns over networks and servers; call `written` after each server."""
    for turn in range(turns):
        for network in NETWORKS:
            for (peer, of), result in results.items():
                if of == network and peer in ready and not result.failure:
                    print(f"turn {turn + 1}, {network}: {result.name}", file=sys.stderr)
                    bench.turn(peer, ready[peer].python, result, rates.get(network, 0.0))
                    written()
            if network not in rates:  # the first turn finds the rate of arrivals for the others
                rates[network] = open_rate(
                    [one for one in results.values() if one.network == network and not one.failure]
                )


def main() -> None:
    """Measure, and write the page."""
    asked = options()
    data = QUICK / "comparison.json" if asked.quick else DATA
    drawn = QUICK / "comparison.svg" if asked.quick else ROOT / "docs" / "images" / "comparison.svg"
    text = QUICK / "comparison.md" if asked.quick else PAGES / "comparison.md"
    if not asked.redraw:
        run_all(asked, data)
    if not asked.install:
        results, run = load(data)
        text.write_text(page(results, run))
        drawn.write_text(plot(results))


def run_all(asked: argparse.Namespace, data: Path) -> None:
    """Install and measure the peers that are asked for."""
    peers = [peer for peer in PEERS if peer.key in asked.peers]
    ready = {peer: prepare(peer) for peer in peers}
    if asked.install:
        return
    kept, old = load(data) if asked.only and data.exists() else ([], None)
    results = plan(ready, kept)
    rates = dict(old.rates) if old else {}
    where = machine()
    run = Run(
        command=shlex.join(["python", "-m", "benchmarks.compare", *sys.argv[1:]]),
        machine=f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB,"
        f" {where['system']}",
        versions=f"torch {version('torch')}, torchvision {version('torchvision')}",
        threads=cpus(),
        seconds=asked.seconds,
    )
    folder = CACHE / "data"
    folder.mkdir(parents=True, exist_ok=True)
    images = make_images(folder)
    weights = make_variant(folder / "variant", images)
    expected = reference(weights, images)

    def written() -> None:
        save(data, list(results.values()), replace(run, rates=rates))

    with generator() as load_generator:
        bench = Bench(
            load_generator, images, weights, expected, asked.seconds, CACHE / "server.log"
        )
        measure(bench, results, ready, asked.turns, rates, written)
    written()


if __name__ == "__main__":
    main()
