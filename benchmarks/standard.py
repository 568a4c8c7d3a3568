"""The standard set: python -m benchmarks.standard [--quick]; `make bench` runs it.

It loads servers on this machine as `resnet50 bench` would, runs other benchmarks of this folder,
and writes their output into docs/benchmarks/results.md, between its two marks, and the figures of
each load into docs/benchmarks/data/results.json. It takes about twenty minutes; with --quick a few,
and nothing is written. It prints each part once it has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cpu import CALIBRATION_IMAGES, VARIANT
from benchmarks.overhead import photo
from benchmarks.process import server
from resnet50_bench.benchmark import bench
from resnet50_bench.environment import machine, versions
from resnet50_bench.plan import Load, Plan
from resnet50_bench.result import Bench
from resnet50_bench.table import costs, latencies, stages
from resnet50_cli.formatting import Grid

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "docs" / "benchmarks" / "results.md"
DATA = PAGE.parent / "data" / "results.json"
BEGIN, END = "<!-- begin: make bench -->", "<!-- end: make bench -->"
SHARES = (0.5, 0.8, 0.95, 1.1, 1.3)
# Other benchmarks to run, and their parts.
SCRIPTS = {
    "cpu": ("engines", "served", "start", "memory"),
    "overhead": ("stream", "serial", "decode", "lag", "import"),
    "batching": ("latency", "overload"),
}


@dataclass(frozen=True)
class Served:
    """A server that is loaded.

    Attributes:
        title: Its title.
        flags: Its command-line flags, besides its variant.
        plans: Loads that it is put under, by what they are.
        swept: Whether it is put under rising load too.
    """

    title: str
    flags: tuple[str, ...]
    plans: dict[str, Plan]
    swept: bool = False


def servers(folder: Path, seconds: float) -> Iterator[Served]:
    """Give what is loaded.

    Args:
        folder: For calibration images and graphs.
        seconds: How long each load is measured.
    """

    def plan(shape: Any = "unary", concurrency: int = 16, **fields: Any) -> Plan:
        load = Load(concurrency=concurrency)
        return Plan(load=load, shape=shape, duration_s=seconds, **fields)

    plans = {
        "one caller": plan(concurrency=1),
        "16 callers": plan(),
        "16 callers, upload": plan("upload"),
        "16 frames in flight on one stream": plan("stream"),
    }
    kept = ("--graph-cache-dir", str(folder))
    calibration = folder / "calibration"
    calibration.mkdir()
    for number in range(CALIBRATION_IMAGES):
        (calibration / f"{number}.jpg").write_bytes(photo())
    int8 = ("--calibration-dir", str(calibration), "--min-int8-agreement", "0")
    yield Served("fp32, the engine that `auto` chooses", kept, plans, swept=True)
    yield Served("int8 made of float weights", (*kept, "--precision", "int8", *int8), plans, True)
    yield Served(
        "no engine (`--engine null`): what serving itself costs", ("--engine", "null"), plans
    )


def report(quick: bool, data: dict[str, Any]) -> Iterator[str]:
    """Run everything; yield it as parts of Markdown.

    Args:
        quick: Measure briefly, and only a part.
        data: Gets the figures, by the server's title and the load's name.
    """
    seconds = 2.0 if quick else 8.0
    yield _heading()
    with tempfile.TemporaryDirectory(prefix="resnet50-") as folder:
        for served in servers(Path(folder), seconds):
            print(served.title, file=sys.stderr)
            yield f"### {served.title}\n"
            with server("--variants", VARIANT, *served.flags) as (address, pid):
                where: dict[str, Any] = {"servers": (address,), "server_pid": pid}
                found = {
                    name: bench(Plan(**vars(plan) | where)) for name, plan in served.plans.items()
                }
                data[served.title] = {name: figures(one) for name, one in found.items()}
                for grid in (latencies, stages, costs):
                    yield _joined({name: grid(one) for name, one in found.items()})
                if served.swept and not quick:
                    plan = Plan(
                        **where, load=Load(rate_per_s=1.0), duration_s=seconds, timeout_s=1.0
                    )
                    swept = bench(plan, SHARES)
                    data[served.title]["Poisson arrivals"] = figures(swept)
                    yield "Poisson arrivals, deadline 1 s, latency from the intended time:\n"
                    yield from (_markdown(latencies(swept)), _markdown(stages(swept)))
    for script, measures in SCRIPTS.items():
        yield f"### python -m benchmarks.{script}\n"
        for name in measures[:1] if quick else measures:
            print(script, name, file=sys.stderr)
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", f"benchmarks.{script}", name],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            yield "\n".join(f"    {line}" for line in done.stdout.splitlines())
        yield ""


def figures(found: Bench) -> dict[str, Any]:
    """Return the figures of a benchmark by load, with its plan and environment."""
    fields: dict[str, Any] = json.loads(found.to_json())
    # Distributions of single runs; the loads have their quantiles.
    return {name: value for name, value in fields.items() if name not in ("runs", "probes")}


def _heading() -> str:
    where, used = machine(), versions()
    used |= {name: version(name) for name in ("torch", "torchvision", "onnxruntime", "openvino")}
    named = ", ".join(f"{name} {number}" for name, number in used.items())
    date = datetime.now(timezone.utc).date().isoformat()
    return (
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB, {where['system']};"
        f" {named}; {date}. Load generator and server share the cores.\n"
    )


def _joined(grids: dict[str, Grid]) -> str:
    """Return several grids of one row as one table."""
    one = next(iter(grids.values()))
    rows = [(name, *row[1:]) for name, grid in grids.items() for row in grid.rows]
    return _markdown(Grid(one.headings, rows, one.note))


def _markdown(grid: Grid) -> str:
    lines = [
        "| " + " | ".join(row) + " |"
        for row in (grid.headings, ("---",) * len(grid.headings), *grid.rows)
    ]
    return "\n".join([*lines, "", *([f"({grid.note})", ""] if grid.note else [])])


def main() -> None:
    """Measure, and write it into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="briefly; write nothing")
    quick = parser.parse_args().quick
    parts = []
    data: dict[str, Any] = {}
    for part in report(quick, data):
        print(part, flush=True)
        parts.append(part)
    if quick:
        return
    text = "\n".join(parts)
    page = PAGE.read_text()
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
