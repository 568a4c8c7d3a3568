"""What is kept of a benchmark: enough to draw its report again and to compare it with another."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cost import ServerCost
from .plan import Load, Plan
from .statistics import Summary

# Raised by one when a field changes its meaning; additions leave it.
SCHEMA = "resnet50-bench/1"
STAGES = ("decode", "queue", "compute", "server", "outside")


@dataclass(frozen=True)
class GeneratorCost:
    """What making the load cost this process.

    Attributes:
        cpu_share: Of one core.
        loop_lag_ms: How late the event loop came to what was due.
        late_ms: How late calls of an open loop were made; without numbers for a closed loop.
    """

    cpu_share: float
    loop_lag_ms: Summary
    late_ms: Summary

    @property
    def lag_p99_ms(self) -> float | None:
        """How late it was in either way, at p99; None if it ran too short to tell."""
        return max((one.p99 for one in (self.loop_lag_ms, self.late_ms) if one.p99), default=None)


@dataclass(frozen=True)
class Run:
    """One load and what became of it. Times are in milliseconds.

    Attributes:
        load: When calls were made.
        duration_s: How long was measured.
        interrupted: Whether it was stopped before its time.
        calls: Calls that were meant within that time.
        offered_per_s: The same by second.
        throughput_per_s: Answers by second.
        goodput_per_s: Answers by second that came before their deadline.
        good_share: Share of `calls` that were answered before their deadline.
        errors: Failed calls by gRPC status code.
        dropped: Frames whose place a newer one took.
        latency_ms: From when a call was meant to its answer; of calls that were answered.
        latency_curve: Pairs of a share of the answers, and the latency that it did not exceed.
        latency_histogram: Pairs of a latency, and how many lay below it and above the one before.
        stages_ms: The server's own account by answer: "decode", "queue", "compute"; "server" for
            all of its time; "outside" for the rest of the latency: network, gRPC, and waiting here.
        batch_sizes: Answers by the size of the batch that they were computed in.
        mean_batch_size: Mean over the batches; None without an answer.
        generator: What making the load cost.
        server: What the server used, if a process was named.
        warnings: Why the figures may not be the server's.
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
    generator: GeneratorCost
    server: ServerCost | None
    warnings: list[str]

    @property
    def answered(self) -> int:
        """How many calls were answered."""
        return self.latency_ms.count

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Run:
        """Read it back."""
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
                "generator": GeneratorCost(
                    generator["cpu_share"],
                    Summary(**generator["loop_lag_ms"]),
                    Summary(**generator["late_ms"]),
                ),
                "server": ServerCost(**fields["server"]) if fields["server"] else None,
            }
        )


@dataclass(frozen=True)
class Bench:
    """A benchmark: what was done, with what, and the runs.

    Attributes:
        date: When it began, ISO 8601 in UTC.
        plan: What was done; the load of a sweep is that of its first run.
        machine: "cpu", "cores", "system", "memory_gib" of where the load was made.
        versions: Of this package, grpcio, protobuf, numpy and Python.
        variant: "name", "digest", "engine", "device", "precision" and "trained" of what answered.
        runs: One, or those of a sweep, the smallest load first.
        capacity_per_s: What a sweep found the server to be capable of, in answers by second.
        probes: The closed loops that found it.
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
        """Return it as one line of JSON."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, allow_nan=False)

    @classmethod
    def load(cls, path: Path) -> Bench:
        """Read a file that `to_json` made.

        Raises:
            OSError: It cannot be read.
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
            raise ValueError(f"{path}: is damaged, or of a newer release: {error!r}") from error
