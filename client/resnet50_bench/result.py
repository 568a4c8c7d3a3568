"""Results of a benchmark, complete for reports and comparisons."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .figures import LoadRuns
from .plan import Load, Plan
from .run import Run

# Incremented when a field changes its meaning, not for additions.
SCHEMA = "resnet50-bench/1"


@dataclass(frozen=True)
class Bench:
    """Results of a benchmark, with its parameters and environment.

    Attributes:
        date: Start time, ISO 8601 in UTC.
        plan: Parameters; the load of a sweep is that of its first run.
        machine: "cpu", "cores", "system" and "memory_gib" of the load generator's machine.
        versions: Versions of this package, grpcio, protobuf, numpy and Python.
        variant: "name", "digest", "engine", "device", "precision" and "trained" of the variant.
        runs: Runs of the load, or of the loads of a sweep by increasing load; all loads are run
            once before the first one is repeated.
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

    def loads(self) -> list[LoadRuns]:
        """Return the runs by load, in the order of the first runs."""
        runs: dict[Load, list[Run]] = {}
        for run in self.runs:
            runs.setdefault(run.load, []).append(run)
        return [LoadRuns(load, tuple(of_load)) for load, of_load in runs.items()]

    def labelled_runs(self) -> list[tuple[str, Run]]:
        """Return all runs, or the probes if there are none, with a description of each."""
        counts = Counter(run.load for run in self.runs)
        seen: Counter[Load] = Counter()
        labelled = []
        for run in self.runs or self.probes:
            label = run.load.describe(self.plan.streams)
            seen[run.load] += 1
            if counts[run.load] > 1:
                label += f", run {seen[run.load]}"
            labelled.append((label, run))
        return labelled

    def to_json(self) -> str:
        """Serialize to one line of JSON; "loads" has median, lowest and highest of each figure."""
        loads = [
            {"load": dataclasses.asdict(one.load), "runs": len(one.runs), "figures": one.spreads()}
            for one in self.loads()
        ]
        fields = {"schema": SCHEMA, **dataclasses.asdict(self), "loads": loads}
        return json.dumps(fields, allow_nan=False)

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
            fields.pop("loads", None)  # computed from the runs
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: is corrupt, or of a newer release: {error!r}") from error
