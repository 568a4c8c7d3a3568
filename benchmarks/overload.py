"""Goodput of real engines under overload: python -m benchmarks.overload [fp32|int8]... [--write].

A server on this machine's cores computes JPEG photographs of about 110 KB with the engine that
`auto` chooses; weights are random, which changes nothing of the time. In turns: its sustained
capacity (a closed loop without deadlines), then Poisson arrivals at 120% and 130% of it, each with
a deadline of 1 s. With --against, a server of another checkout takes turns with it under the same
arrivals: before and after in one run.

The load generator shares the cores. Its messages are bytes that were made before, so that a call
costs it the same in all loads, about a millisecond; it says how much of a core it took.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks import page
from benchmarks.batching import CHANNELS, CLASSIFY, poisson, quantile, send
from benchmarks.process import ServerProcess
from resnet50.v1 import image_pb2, inference_pb2
from resnet50_bench.sample_images import photograph

SHARES = (1.2, 1.3)
WITHIN_S = 1.0
PROMPT_MS = 10.0
CALLERS = 32
LEAD_S = 2.0
PHOTOGRAPHS = 16
CALIBRATION_IMAGES = 32
OURS = Path(__file__).resolve().parents[1]
# Counts of a server: images refused when they had been decoded (not counted by all checkouts), and
# images of cancelled calls, computed or not; images in batches, and batches.
IN_VAIN = 'resnet50_shed_total{limit="deadline_later"}'
EXPIRED = "resnet50_cancelled_total"
COMPUTED, BATCHES = "resnet50_batch_size_sum", "resnet50_batch_size_count"


@dataclass(frozen=True)
class Outcome:
    """Outcome of one load.

    Attributes:
        calls: How many were made.
        goodput: Answers in time, by capacity.
        refused_ms: How long each refusal took from the call on, in milliseconds.
        own: The load generator's CPU, of one core.
        counts: By how much the server's counts grew; None for one that it does not have.
    """

    calls: int
    goodput: float
    refused_ms: list[float]
    own: float
    counts: Mapping[str, float | None]


class Served:
    """A server under test.

    Args:
        checkout: Directory of the code that it runs.
        folder: For its log and its graphs.
        flags: Its command-line flags.
    """

    def __init__(self, checkout: Path, folder: Path, flags: Sequence[str]) -> None:
        path = os.pathsep.join(str(checkout / part) for part in ("server", "protos"))
        self.process = ServerProcess(
            *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"),
            *(
                "--variants",
                "untrained=random:0",
                "--graph-cache-dir",
                str(folder / "cache"),
                *flags,
            ),
            log=folder / "log",
            within=("env", f"PYTHONPATH={path}"),
        )
        self.process.wait_until_ready()

    def counts(self) -> dict[str, float | None]:
        """Return the server's counts."""
        with urllib.request.urlopen(self.process.metrics_url + "/metrics") as reply:
            text = reply.read().decode()
        found: dict[str, float | None] = {}
        for name in (IN_VAIN, EXPIRED, COMPUTED, BATCHES):
            any_labels = "" if "{" in name else "(?:{.*})?"
            values = re.findall(rf"^{re.escape(name)}{any_labels} (\S+)$", text, re.MULTILINE)
            found[name] = sum(map(float, values)) if values else None
        return found


async def sustained(served: Served, contents: list[bytes], seconds: float) -> float:
    """Return the answers a second to callers that each have one call in flight."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = served.process.address
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
    methods = [channel.unary_unary(CLASSIFY) for channel in channels]
    begins = time.perf_counter() + LEAD_S
    answered = 0.0

    async def caller(number: int) -> None:
        nonlocal answered
        while (now := time.perf_counter()) < begins + seconds:
            await methods[number % CHANNELS](contents[number % len(contents)])
            # As much of the call as lies in the time that is measured.
            ended = time.perf_counter()
            inside = min(ended, begins + seconds) - max(now, begins)
            answered += max(0.0, inside) / (ended - now)
            number += CALLERS

    await asyncio.gather(*map(caller, range(CALLERS)))
    for channel in channels:
        await channel.close()
    return answered / seconds


def overload(
    served: Served, contents: list[bytes], capacity: float, share: float, seconds: float, seed: int
) -> Outcome:
    """Put a server under Poisson arrivals at a share of a capacity."""
    rate = share * capacity
    arrivals = poisson(rate, int(rate * (LEAD_S + seconds)), seed)
    before, started, used = served.counts(), time.perf_counter(), time.process_time()
    calls = asyncio.run(send(served.process.address, arrivals, WITHIN_S, contents))
    own = (time.process_time() - used) / (time.perf_counter() - started)
    after = served.counts()
    counted = [call for call in calls if call.due > LEAD_S]
    good = [c for c in counted if c.code is grpc.StatusCode.OK and c.done <= WITHIN_S]
    # gRPC ends a call without an answer at its deadline with the same code.
    refused = [c for c in counted if c.code is not grpc.StatusCode.OK and c.done < WITHIN_S]
    return Outcome(
        len(counted),
        len(good) / (arrivals[-1] - LEAD_S) / capacity,
        [(call.done - call.sent) * 1e3 for call in refused],
        own,
        {name: None if one is None else one - (before[name] or 0.0) for name, one in after.items()},
    )


def measure(
    precision: str,
    checkouts: Mapping[str, Path],
    folder: Path,
    contents: list[bytes],
    turns: int,
    seconds: float,
) -> Iterator[str]:
    """Let servers of the same precision take turns."""
    flags: list[str] = []
    if precision == "int8":
        flags = ["--precision", "int8", "--min-int8-agreement", "0"]
        flags += ["--calibration-dir", str(folder / "calibration")]
    rates: dict[str, list[float]] = {name: [] for name in checkouts}
    found: dict[tuple[float, str], list[Outcome]] = {}
    with ExitStack() as stack:
        servers = {name: Served(checkout, folder, flags) for name, checkout in checkouts.items()}
        for served in servers.values():
            stack.callback(served.process.stop)
        for turn in range(turns):
            for share in SHARES:
                for name, served in servers.items():
                    rates[name].append(asyncio.run(sustained(served, contents, seconds / 2)))
                # Theirs together: all get the same arrivals, and are held against the same figure.
                capacity = statistics.mean(of_one[-1] for of_one in rates.values())
                for name, served in servers.items():
                    came = overload(served, contents, capacity, share, seconds, turn)
                    found.setdefault((share, name), []).append(came)
    for name, of_one in rates.items():
        yield (
            f"{precision}{name}: sustained {statistics.median(of_one):.1f} answers/s"
            f" ({min(of_one):.1f} to {max(of_one):.1f})"
        )
    for (share, name), outcomes in found.items():
        yield f"{precision}{name}, {share:.0%}: {said(outcomes)}"


def said(outcomes: list[Outcome]) -> str:
    """Return the outcome of a load in several turns."""
    goodputs = [one.goodput for one in outcomes]
    calls = sum(one.calls for one in outcomes)
    took = [ms for one in outcomes for ms in one.refused_ms] or [0.0]
    prompt = sum(ms <= PROMPT_MS for ms in took) / len(took)
    total: dict[str, float] = {}
    for one in outcomes:
        for name, count in one.counts.items():
            total[name] = total.get(name, 0.0) + (-1e9 if count is None else count)
    vain = f"{total[IN_VAIN]:.0f}" if total[IN_VAIN] >= 0 else "not counted how many"
    return (
        f"in time {statistics.median(goodputs):.2f} of capacity ({min(goodputs):.2f} to"
        f" {max(goodputs):.2f}); of {calls} calls {len(took)} refused, after p50"
        f" {quantile(took, 0.5):.1f}, p90 {quantile(took, 0.9):.1f}, p99"
        f" {quantile(took, 0.99):.1f} ms, {prompt:.0%} within {PROMPT_MS:.0f} ms; refused after"
        f" they were decoded: {vain}; expired inside: {total[EXPIRED]:.0f}; batches of"
        f" {total[COMPUTED] / max(1.0, total[BATCHES]):.1f}; the load generator took"
        f" {statistics.mean(one.own for one in outcomes):.0%} of a core"
    )


def lines(given: argparse.Namespace) -> Iterator[str]:
    """Measure."""
    checkouts = {"": OURS}
    if given.against is not None:
        checkouts = {", before": given.against, ", after": OURS}
    pictures = [image_pb2.Image(encoded=photograph(seed)) for seed in range(PHOTOGRAPHS)]
    contents = [inference_pb2.ClassifyRequest(image=one).SerializeToString() for one in pictures]
    with tempfile.TemporaryDirectory(prefix="resnet50-") as name:
        folder = Path(name)
        (folder / "calibration").mkdir()
        for number in range(CALIBRATION_IMAGES):
            (folder / "calibration" / f"{number}.jpg").write_bytes(photograph(number))
        for precision in given.precision or ("fp32", "int8"):
            yield from measure(precision, checkouts, folder, contents, given.turns, given.seconds)


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("precision", nargs="*", choices=["fp32", "int8", []], help="default: both")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="whose server takes turns")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each load")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    given = parser.parse_args()
    text = page.report(lines(given))
    if given.write:
        page.write("overload", text)


if __name__ == "__main__":
    main()
