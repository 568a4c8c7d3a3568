"""Results of one run of a load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .plan import Load
from .resource_usage import ServerUsage
from .statistics import Summary

STAGES = ("decode", "queue", "compute", "server", "outside")


@dataclass(frozen=True)
class GeneratorUsage:
    """Resource usage of the load generator's processes.

    Attributes:
        cpu_share: CPU time of all processes ÷ wall time: 1 is a whole core.
        loop_lag_ms: Lag of the event loops.
        late_ms: Delay of calls of an open loop; empty for a closed loop.
        busiest_share: `cpu_share` of the busiest of several processes; None of a single one.
    """

    cpu_share: float
    loop_lag_ms: Summary
    late_ms: Summary
    busiest_share: float | None = None

    @property
    def lag_p99_ms(self) -> float | None:
        """The larger p99 of the two delays; None if the run was too short."""
        return max((one.p99 for one in (self.loop_lag_ms, self.late_ms) if one.p99), default=None)


@dataclass(frozen=True)
class Run:
    """Results of one load.

    Attributes:
        load: Arrival of calls.
        duration_s: Measured time in seconds.
        interrupted: True if it was stopped early.
        calls: Calls whose intended time is within the measured time.
        offered_per_s: Calls per second.
        throughput_per_s: Responses per second.
        goodput_per_s: Responses per second within their deadlines.
        good_share: Fraction of `calls` completed within their deadlines.
        errors: Failed calls by gRPC status code.
        dropped: Frames replaced by newer ones.
        latency_ms: Milliseconds from a call's intended time to its response.
        latency_curve: Pairs of a fraction of responses and the latency they do not exceed, in ms.
        latency_histogram: Pairs of a bucket's upper bound in ms and its count.
        stages_ms: Times in milliseconds, as reported by the server: "decode", "queue", "compute",
            "server" (total); and "outside", the rest of the latency: network, gRPC, client.
        batch_sizes: Responses by batch size.
        mean_batch_size: Mean over the batches; None without responses.
        generator: Resource usage of the load generator.
        server: Resource usage of the server, if its process was given.
        warnings: Reasons why the load generator may have affected the results.
    """

    load: Load
    duration_s: float
    interrupted: bool
    calls: int
    offered_per_s: float
    throughput_per_s: float
    goodput_per_s: float
    good_share: float
    errors: dict[str, int]
    dropped: int
    latency_ms: Summary
    latency_curve: list[tuple[float, float]]
    latency_histogram: list[tuple[float, int]]
    stages_ms: dict[str, Summary]
    batch_sizes: dict[int, int]
    mean_batch_size: float | None
    generator: GeneratorUsage
    server: ServerUsage | None
    warnings: list[str]

    @property
    def answered(self) -> int:
        """Number of successful calls."""
        return self.latency_ms.count

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Run:
        """Restore from the fields of `to_json`."""
        generator = fields["generator"]
        return cls(
            **{
                **fields,
                "load": Load(**fields["load"]),
                "latency_ms": Summary(**fields["latency_ms"]),
                "latency_curve": [(share, ms) for share, ms in fields["latency_curve"]],
                "latency_histogram": [(ms, count) for ms, count in fields["latency_histogram"]],
                "stages_ms": {name: Summary(**one) for name, one in fields["stages_ms"].items()},
                "batch_sizes": {int(size): n for size, n in fields["batch_sizes"].items()},
                "generator": GeneratorUsage(
                    **{
                        **generator,
                        "loop_lag_ms": Summary(**generator["loop_lag_ms"]),
                        "late_ms": Summary(**generator["late_ms"]),
                    }
                ),
                "server": ServerUsage(**fields["server"]) if fields["server"] else None,
            }
        )
