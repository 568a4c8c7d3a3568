"""Measured values that the simulation uses, with their sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.new_servers import PRE_STOP_S, TTL_S, of_manifest
from tests.support.simulation import Device

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = "docs/benchmarks/results.md"


@dataclass(frozen=True)
class Costs:
    """Measured values.

    Attributes:
        device: Duration of a batch by its size: the line through batches of 1 and of 8.
        around_s: Rest of a single call: decoding, the server's own time, gRPC and the network.
        start_s: Time from the start of a new server until it is ready.
        pre_stop_s: Time from the removal of a server's address to its SIGTERM.
        ttl_s: Time that the cluster's DNS keeps an answer.
        age_s: Maximum age of connections.
        grace_s: Time of calls in flight after that.
    """

    device: Device
    around_s: float
    start_s: float = 5.9
    pre_stop_s: float = PRE_STOP_S
    ttl_s: float = TTL_S
    age_s: float = 30.0
    grace_s: float = 20.0

    def sources(self) -> list[tuple[str, str, str]]:
        """Return the rows of a table: value, figure, source."""
        device = self.device
        return [
            (
                "batch of b images",
                f"{device.alpha_s * 1e3:.1f} + {device.beta_s * 1e3:.1f}·b ms",
                f"{RESULTS}, `benchmarks.cpu`: fp32, OpenVINO, batches of 1 and 8",
            ),
            (
                "rest of a call",
                f"{self.around_s * 1e3:.1f} ms",
                f"{RESULTS}, fp32, one caller: p50 latency less p50 compute time",
            ),
            (
                "start of a server",
                f"{self.start_s:g} s",
                "docs/how-to/size-a-deployment.md: two cores, without exported graphs",
            ),
            ("address removed before SIGTERM", f"{self.pre_stop_s:g} s", "preStop of the manifest"),
            ("DNS keeps an answer", f"{self.ttl_s:g} s", "default of CoreDNS for Services"),
            (
                "age of connections",
                f"{self.age_s:g} s ± 10%",
                "the manifest; the jitter is gRPC's",
            ),
        ]


def measured() -> Costs:
    """Read the values from the documentation and the manifest.

    Raises:
        ValueError: A page does not have its figures.
    """
    page = (DOCS / "benchmarks" / "results.md").read_text()
    rates = re.search(r"engines  fp32 openvino +([\d.]+) and +([\d.]+) images/s", page)
    section = page.partition("\n### fp32, the engine")[2]
    latency = re.search(
        r"^\| one caller \| [\d.]+ \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|", section, re.M
    )
    compute = re.search(r"^\| one caller \| 1\.00 \| [^|]+\| [^|]+\| ([\d.]+) / ", section, re.M)
    if rates is None or latency is None or compute is None:
        raise ValueError(f"{RESULTS} lacks the figures of fp32: run `make bench`")
    single_s, eight_s = 1 / float(rates[1]), 8 / float(rates[2])
    beta_s = (eight_s - single_s) / 7
    age_s, grace_s = of_manifest()
    return Costs(
        Device(alpha_s=single_s - beta_s, beta_s=beta_s, limit=32),
        around_s=(float(latency[1]) - float(compute[1])) / 1e3,
        age_s=age_s,
        grace_s=grace_s,
    )
