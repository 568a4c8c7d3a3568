"""Pages of docs/, whose figures are written between marks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from benchmarks.ledger import Ledger
from resnet50_bench.environment import machine, versions

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "benchmarks" / "reliability.md"


def report(lines: Iterable[str], clients: str = "The clients share the cores.") -> str:
    """Return lines as Markdown below the machine that they come from; print them meanwhile."""
    written = [f"{where()} {clients}", ""]
    for line in lines:
        print(line, flush=True)
        written.append(f"* {line}")
    return "\n".join(written)


class Outcome(Protocol):
    """Outcome of a trial.

    Attributes:
        ledger: Outcomes of its calls.
    """

    ledger: Ledger

    def lines(self) -> Iterator[str]:
        """Yield the lines of its report."""


def conclude(target: str, outcome: Outcome, to_page: bool) -> int:
    """Print the outcome of a trial, write it if asked to; return the exit code."""
    text = report(outcome.lines())
    print(outcome.ledger.by_shape())
    if to_page:
        write(target, text)
    return 1 if outcome.ledger.faults else 0


def where() -> str:
    """Return the machine, the versions and the day of a measurement."""
    found, used = machine(), versions()
    named = ", ".join(f"{name} {number}" for name, number in used.items())
    today = datetime.now(timezone.utc).date().isoformat()
    return f"{found['cpu']}, {found['cores']} cores; {named}; {today}."


def write(target: str, text: str, path: Path = PAGE) -> None:
    """Put a text between the marks of a make target."""
    begin, end = f"<!-- begin: make {target} -->", f"<!-- end: make {target} -->"
    page = path.read_text()
    before, found, rest = page.partition(begin)
    assert found and end in rest, f"{path} has no marks of make {target}"
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
