"""Prints what share of each package's statements the tests ran; below it, modules under 90%.

python -m tests.support.coverage_table
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[2]
GOAL = 0.9


@dataclass
class Count:
    """Statements, and how many of them no test ran."""

    statements: int = 0
    missed: int = 0

    @property
    def share(self) -> float:
        return 1.0 - self.missed / self.statements if self.statements else 1.0

    def __str__(self) -> str:
        return f"{self.statements:6} {self.missed:6} {self.share:7.1%}"


def counts(recorded: coverage.Coverage) -> dict[Path, Count]:
    """Return the count of each file, by its path from the repository's root."""
    found = {}
    for name in recorded.get_data().measured_files():
        _, statements, _, missing, _ = recorded.analysis2(name)
        found[Path(name).relative_to(ROOT)] = Count(len(statements), len(missing))
    return found


def by_package(files: dict[Path, Count]) -> dict[str, Count]:
    found: dict[str, Count] = collections.defaultdict(Count)
    for path, count in files.items():
        package = found[".".join(path.parent.parts[1:])]
        package.statements += count.statements
        package.missed += count.missed
    return dict(sorted(found.items()))


def lines(rows: Iterable[tuple[str, Count]]) -> list[str]:
    return [f"{name:50} {count}" for name, count in rows]


def main() -> None:
    recorded = coverage.Coverage(data_file=ROOT / ".cache" / "coverage")
    recorded.load()
    files = counts(recorded)
    print(f"{'package':50} {'lines':>6} {'missed':>6} {'run':>7}")
    print("\n".join(lines(by_package(files).items())))
    low = {str(path): one for path, one in sorted(files.items()) if one.share < GOAL}
    print(f"\nmodules below {GOAL:.0%}")
    print("\n".join(lines(low.items())))


if __name__ == "__main__":
    main()
