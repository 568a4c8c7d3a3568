"""Results of a benchmark, complete for reports and comparisons."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan import Load, Plan
from .resource_usage import ServerUsage
from .statistics import Summary

# Incremented when a field changes its meaning, not for additions.
SCHEMA = "resnet50-bench/1"
STAGES = ("decode", "queue", "compute", "server", "outside")


@dataclass(frozen=True)
class GeneratorUsage:
    """Resource usage of the load generator's process.

    Attributes:
        cpu_share: CPU time ÷ wall time: 1 is a whole core.
        loop_lag_ms: Lag of the event loop.
        late_ms: Delay of calls of an open loop; empty for a closed loop.
    """

    cpu_share: float
    loop_lag_ms: Summary
    late_ms: Summary

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
                    generator["cpu_share"],
                    Summary(**generator["loop_lag_ms"]),
                    Summary(**generator["late_ms"]),
                ),
                "server": ServerUsage(**fields["server"]) if fields["server"] else None,
            }
        )


@dataclass(frozen=True)
class Bench:
    """Results of a benchmark, with its parameters and environment.

    Attributes:
        date: Start time, ISO 8601 in UTC.
        plan: Parameters; the load of a sweep is that of its first run.
        machine: "cpu", "cores", "system" and "memory_gib" of the load generator's machine.
        versions: Versions of this package, grpcio, protobuf, numpy and Python.
        variant: "name", "digest", "engine", "device", "precision" and "trained" of the variant.
        runs: One run, or those of a sweep, by increasing load.
        capacity_per_s: The server's capacity in responses per second, measured by a sweep.
        probes: The closed loops that measured it.
    """

    date: str
    plan: Plan
    machine: dict[str, Any]
    versions: dict[str, str]
    variant: dict[str, Any]
    runs: list[Run]
    capacity_per_s: float | None = None
    probes: list[Run] = dataclasses.field(default_factory=list)

    def to_json(self) -> str:
        """Serialize to one line of JSON."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, allow_nan=False)

    @classmethod
    def load(cls, path: Path) -> Bench:
        """Load a file written by `to_json`.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not such a file, or of another release.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            schema = fields.pop("schema")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: is not a file of `resnet50 bench --out`") from error
        if schema != SCHEMA:
            raise ValueError(f"{path}: has schema {schema!r}, this release reads {SCHEMA!r}")
        try:
            plan = fields["plan"]
            for name in ("servers", "files"):
                plan[name] = tuple(plan[name])
            fields["plan"] = Plan(**plan | {"load": Load(**plan["load"])})
            for name in ("runs", "probes"):
                fields[name] = [Run.from_json(one) for one in fields[name]]
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: is corrupt, or of a newer release: {error!r}") from error
