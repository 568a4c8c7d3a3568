"""Simulate 1 to 1,000 replicas: python -m benchmarks.scale_out [--write] [--real].

Without options, prints throughput and latency by number of replicas and by the way in which calls
find them, what happens after a replica is added, and during a rolling update, for several maximum
ages of connections. Takes half a minute; the same seed gives the same figures. --real runs 1, 2 and
4 servers of the timed engine on this machine as well, and compares them with the simulation; it
takes a minute on an idle machine. --write puts the figures into docs/benchmarks/scale-out.md, and
the points of the plots into docs/benchmarks/data/scale-out.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterable, Sequence

from benchmarks import page
from benchmarks.scale_out import real, scenarios
from benchmarks.scale_out.costs import DOCS, Costs, measured
from benchmarks.scale_out.scenarios import AGES_S, POLICIES, SIZES, Moment, Steady

PAGE = DOCS / "benchmarks" / "scale-out.md"
DATA = DOCS / "benchmarks" / "data" / "scale-out.json"
# Numbers of clients of 100 replicas.
CROWDS = (1, 10, 100, 1000)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def age(age_s: float) -> str:
    """Return a maximum age of connections as text."""
    return "never" if math.isinf(age_s) else f"{age_s:g} s"


def sizes(costs: Costs) -> tuple[str, list[Steady]]:
    """Return the table by number of replicas, and its figures."""
    figures = [scenarios.steady(costs, policy, size) for size in SIZES for policy in POLICIES]
    rows = [
        (
            one.replicas,
            one.policy,
            f"{one.offered:.0f}",
            f"{one.answered:.0f}",
            f"{one.p50_ms:.0f}",
            f"{one.p99_ms:.0f}",
            f"{one.refused:.1%}",
        )
        for one in figures
    ]
    head = ("replicas", "balancing", "calls/s", "answers/s", "p50 ms", "p99 ms", "refused")
    return table(head, rows), figures


def crowds(costs: Costs) -> str:
    """Return the table by number of clients."""
    policy = next(iter(POLICIES))
    figures = [scenarios.steady(costs, policy, 100, clients) for clients in CROWDS]
    return table(
        ("clients of 100 replicas", "p50 ms", "p99 ms", "refused", "connections", "renewed/s"),
        [
            (
                one.clients,
                f"{one.p50_ms:.0f}",
                f"{one.p99_ms:.0f}",
                f"{one.refused:.1%}",
                one.clients * 100,
                f"{one.clients * 100 / costs.age_s:.0f}",
            )
            for one in figures
        ],
    )


def changes(costs: Costs) -> tuple[str, dict[str, list[Moment]]]:
    """Return the table of a scale-up and of a rolling update, and their courses."""
    rows, courses = [], {}
    for title, scenario in (
        ("scale-up, 4 to 5", scenarios.scale_up),
        ("rolling update of 10", scenarios.rolling_update),
    ):
        for age_s in AGES_S:
            course = scenario(costs, age_s)
            courses[f"{title}, {age(age_s)}"] = course
            share = scenarios.share_after(course)
            rows.append(
                (
                    title,
                    age(age_s),
                    "never" if share is None else f"{share:.0f} s",
                    f"{scenarios.mean_share(course):.0%}",
                    f"{scenarios.refused_in_all(course):.1%}",
                    f"{scenarios.worst_ms(course):.0f}",
                )
            )
    head = (
        "change",
        "connections end after",
        "newest has 80% of its share",
        "mean of 2 minutes",
        "refused",
        "worst p99 ms",
    )
    return table(head, rows), courses


def comparison(costs: Costs, seconds: float) -> str:
    """Return the table of measured and simulated figures."""
    rows = []
    first = 0.0
    for one in real.compare(costs, seconds):
        first = first or one.closed
        rows.append(
            (
                one.servers,
                f"{one.closed:.1f} / {one.closed_simulated:.1f}",
                f"{one.closed / first / one.servers:.2f}",
                f"{one.p50_ms:.0f} / {one.p50_simulated_ms:.0f}",
                f"{one.p99_ms:.0f} / {one.p99_simulated_ms:.0f}",
                f"{one.p99_ms / one.p99_simulated_ms:.2f}",
                one.failed,
            )
        )
    head = (
        "servers",
        "answers/s, closed loop",
        "against one server",
        "p50 ms at 80%",
        "p99 ms at 80%",
        "p99 measured ÷ simulated",
        "failed",
    )
    return table(head, rows)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", action="store_true", help="run servers on this machine as well")
    parser.add_argument("--real-only", action="store_true", help="no simulation but theirs")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each load of --real")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/scale-out.md")
    arguments = parser.parse_args()
    costs = measured()
    if not arguments.real_only:
        inputs = table(("value", "figure", "source"), costs.sources())
        by_size, figures = sizes(costs)
        by_change, courses = changes(costs)
        text = f"{inputs}\n\n{by_size}\n\n{crowds(costs)}\n\n{by_change}"
        print(text)
        if arguments.write:
            page.write("scale-out", text, PAGE)
            points = {
                "sizes": [dataclasses.asdict(one) for one in figures],
                "courses": {
                    name: [dataclasses.asdict(one) for one in course]
                    for name, course in courses.items()
                },
            }
            DATA.write_text(json.dumps(points, indent=1) + "\n")
    if arguments.real or arguments.real_only:
        compared = f"{page.where()}\n\n{comparison(costs, arguments.seconds)}"
        print(compared)
        if arguments.write:
            page.write("scale-out: real", compared, PAGE)


if __name__ == "__main__":
    main()
