from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from resnet50_bench.comparison import differences, rows, table
from resnet50_bench.plan import Load, Plan
from resnet50_bench.recording import measurement_warnings
from resnet50_bench.report import page
from resnet50_bench.resource_usage import GeneratorMeter
from resnet50_bench.result import Bench
from resnet50_bench.run import GeneratorUsage, Run
from resnet50_bench.statistics import summary
from resnet50_bench.table import costs, grids, latencies, spreads, stages, tables
from tests.support.bench_runs import a_bench, a_run, a_sweep


def two_sweeps() -> Bench:
    once = a_sweep()
    return replace(once, runs=once.runs + a_sweep(scale=2.0).runs)


def repeated(*scales: float, load: Load | None = None, **fields) -> list[Run]:
    return [a_run(load, scale, throughput_per_s=200.0 / scale, **fields) for scale in scales]


@pytest.mark.parametrize(
    "bench",
    [a_bench(), a_bench(a_run(server=None)), a_sweep(), a_bench(*repeated(1.0, 1.1, 1.3))],
)
def test_file_is_read_back_as_it_was(bench, tmp_path):
    file = tmp_path / "bench.json"
    file.write_text(bench.to_json())
    assert Bench.load(file) == bench
    assert json.loads(file.read_text())["schema"] == "resnet50-bench/1"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": "resnet50-bench/2"}', '{"schema": "resnet50-bench/1"}']
)
def test_files_that_are_none_are_refused_by_name(content, tmp_path):
    file = tmp_path / "bench.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"bench\.json"):
        Bench.load(file)


def figures(one: Bench, other: Bench) -> dict[tuple[str, str], float | None]:
    return {(row.load, row.name): row.ratio for row in rows(one, other)}


def test_comparison_gives_ratios_of_the_second_to_the_first():
    found = figures(a_bench(), a_bench(a_run(scale=2.0, throughput_per_s=300.0)))
    assert found["4 in flight", "p99 ms"] == pytest.approx(2.0, rel=1e-4)
    assert found["4 in flight", "answers/s"] == 1.5
    assert found["4 in flight", "dropped"] is None  # of nothing


def test_sweeps_are_compared_at_equal_shares_of_their_capacities():
    one, other = a_sweep(200.0), a_sweep(400.0, scale=0.5)
    other.runs.pop(0)
    found = figures(one, other)
    assert found["capacity", "answers/s"] == 2.0
    assert found["70%: 140/s", "calls/s"] == 2.0
    assert found["70%: 140/s", "p50 ms"] == pytest.approx(0.5, rel=1e-4)
    assert {load for load, _ in found} == {"capacity", "70%: 140/s", "130%: 260/s"}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"machine": {"cpu": "Another"}}, "machine, cpu"),
        ({"versions": {"grpcio": "1.85"}}, "versions, grpcio"),
        ({"variant": {"digest": "1" * 64}}, "variant, digest"),
        ({"variant": {"engine": "torch"}}, "variant, engine"),
        ({"plan": Plan(load=Load(concurrency=4), shape="upload")}, "plan, shape"),
        ({"plan": Plan(load=Load(concurrency=4), timeout_s=1.0)}, "plan, timeout_s"),
        ({"runs": [a_run(Load(concurrency=8))]}, "loads: 4 in flight against 8 in flight"),
        ({"runs": [a_run(warnings=["slow"])]}, "B, 4 in flight: slow"),
        ({"runs": [a_run(interrupted=True)]}, "B, 4 in flight: was interrupted"),
    ],
)
def test_comparison_says_what_else_differs(changed, named):
    one = a_bench()
    assert differences(one, a_bench()) == []
    known = {
        name: getattr(one, name) | value if isinstance(value, dict) else value
        for name, value in changed.items()
    }
    (difference,) = differences(one, replace(one, **known))
    assert difference.startswith(named)


def text_of(bench: Bench) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(tables(bench))
    return capture.get()


def test_tables_show_dashes_for_what_too_few_numbers_bear():
    few = latencies(a_bench(a_run(latency_ms=summary([1.0, 2.0, 3.0]))))
    shown = dict(zip(few.headings, few.rows[0], strict=True))
    assert (shown["p50 ms"], shown["p90 ms"], shown["max ms"]) == ("2.00", "-", "3.00")
    assert (shown["load"], shown["answers/s"], shown["failed"]) == ("4 in flight", "200", "0.5%")


@pytest.mark.parametrize("bench", [a_bench(), a_sweep(), a_bench(a_run(server=None)), two_sweeps()])
def test_terminal_shows_every_figure_whole(bench):
    text = text_of(bench)
    for grid in grids(bench):
        for cell in (*grid.headings, *(cell for row in grid.rows for cell in row)):
            assert cell in text
    assert "errors: 10 UNAVAILABLE" in text


def test_repeated_runs_show_median_and_range():
    bench = a_bench(*repeated(1.0, 1.25, 2.0))
    shown = dict(zip(latencies(bench).headings, latencies(bench).rows[0], strict=True))
    assert shown["answers/s"] == "160"  # of 200, 160 and 100
    assert shown["failed"] == "0.5%"
    (row,) = spreads(bench).rows
    ranges = dict(zip(spreads(bench).headings, row, strict=True))
    assert (ranges["runs"], ranges["answers/s"]) == ("3", "160 (100 to 200)")
    assert ranges["in time/s"] == "199"  # the same in all runs
    (load,) = json.loads(bench.to_json())["loads"]
    assert (load["load"]["concurrency"], load["runs"]) == (4, 3)
    assert load["figures"]["answers/s"] == {"median": 160.0, "lowest": 100.0, "highest": 200.0}
    assert spreads(a_bench()) is None


def test_a_repeated_load_shows_each_figure_once():
    lines = text_of(a_bench(*repeated(1.0, 1.25, 2.0))).splitlines()
    (line,) = [line for line in lines if line.startswith("answers/s")]
    assert line.split(maxsplit=1)[1] == "160 (100 to 200)"


def test_repeated_loads_of_a_sweep_are_one_row_each():
    bench = two_sweeps()
    assert [len(one.runs) for one in bench.loads()] == [2, 2, 2]
    assert len(latencies(bench).rows) == len(costs(bench).rows) == len(stages(bench).rows) == 3
    labels = [label for label, _ in bench.labelled_runs()]
    assert labels[0] == "10%: 20/s, run 1"
    assert labels[3] == "10%: 20/s, run 2"


@pytest.mark.parametrize(("scale", "overlap"), [(1.1, True), (4.0, False)])
def test_comparison_says_if_the_ranges_overlap(scale, overlap):
    one, other = a_bench(*repeated(1.0, 1.3)), a_bench(*repeated(scale, scale * 1.3))
    (row,) = [row for row in rows(one, other) if row.name == "answers/s"]
    assert row.overlap is overlap
    assert row.ratio == pytest.approx(1 / scale)
    assert differences(one, other) == []
    (single,) = [row for row in rows(a_bench(), other) if row.name == "answers/s"]
    assert single.overlap is None
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table(rows(one, other)))
    text = capture.get()
    assert (f"~{row.ratio:.2f}" in text) is overlap
    assert "(154 to 200)" in text


def test_dropped_frames_have_a_column_where_there_can_be_any():
    assert "dropped" not in latencies(a_bench()).headings
    plan = Plan(load=Load(fps=10.0), shape="stream", delivery="latest")
    dropped = latencies(a_bench(a_run(dropped=201), plan=plan))
    assert (dropped.headings[-1], dropped.rows[0][-1]) == ("dropped", "10.0%")


class Resources(HTMLParser):
    """Finds what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
                if not value.startswith(("#", "data:")):
                    self.loaded.append(value)
            elif "url(" in (value or "") and "url(#" not in value:
                self.loaded.append(value)


@pytest.mark.parametrize(
    ("bench", "plots"),
    [
        (a_bench(), 4),
        (a_sweep(), 6),
        (a_bench(a_run(calls=5, latency_ms=summary([]), latency_curve=[], batch_sizes={})), 1),
        (a_bench(runs=[]), 0),
        (a_bench(*repeated(1.0, 1.1)), 4),
        (two_sweeps(), 6),
    ],
)
def test_report_needs_nothing_from_elsewhere(bench, plots):
    seen = Resources()
    seen.feed(page(bench))
    assert seen.loaded == []
    assert seen.tags.count("svg") == plots
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(seen.tags)
    assert "@import" not in page(bench)
    assert "<?xml" not in page(bench)  # nor a document type, whose address a reader might follow
    assert page(bench).lower().count("<!doctype") == 1


def test_plots_take_the_colours_of_the_page():
    drawing = "".join(re.findall(r"<svg.*?</svg>", page(a_sweep()), re.DOTALL))
    assert "currentColor" in drawing
    assert not re.search("#1f2933|(?<!, )#d5dbe1", drawing)


def test_report_escapes_what_comes_from_outside():
    evil = "<script>alert('$title')</script>"
    bench = a_bench(a_run(errors={evil: 3}, warnings=[evil]))
    bench.variant["name"] = bench.machine["cpu"] = evil
    seen = Resources()
    seen.feed(page(replace(bench, plan=Plan(load=Load(concurrency=4), servers=(evil,)))))
    assert "script" not in seen.tags


def test_a_busy_or_late_generator_is_doubted():
    calm, late = summary([0.1] * 1000), summary([30.0] * 1000)
    latency = summary([100.0] * 1000)
    assert measurement_warnings(GeneratorUsage(0.5, calm, calm), latency) == []
    (busy,) = measurement_warnings(GeneratorUsage(0.95, calm, calm), latency)
    assert "95% of a core" in busy
    assert "event loop" in measurement_warnings(GeneratorUsage(0.5, late, calm), latency)[0]
    assert "calls were made" in measurement_warnings(GeneratorUsage(0.5, calm, late), latency)[0]
    assert measurement_warnings(GeneratorUsage(0.5, late, late), summary([1000.0] * 1000)) == []


def test_the_busiest_of_several_processes_is_doubted():
    calm, latency = summary([0.1] * 1000), summary([100.0] * 1000)
    assert measurement_warnings(GeneratorUsage(1.4, calm, calm, 0.7), latency) == []
    (busy,) = measurement_warnings(GeneratorUsage(1.4, calm, calm, 0.9), latency)
    assert "busiest process" in busy
    assert "90% of a core" in busy


def test_own_cost_counts_the_cpu_of_this_process():
    cost = GeneratorMeter()
    assert cost.cpu_share == 0.0
    cost.begin()
    sum(range(3_000_000))
    cost.end()
    assert cost.cpu_share > 0.0
