"""docs/reliability.md, whose figures are written between marks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from resnet50_client.cli.bench.environment import machine, versions

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"


def report(lines: Iterable[str], clients: str = "The clients share the cores.") -> str:
    """Return lines as Markdown below the machine that they come from; print them meanwhile."""
    where, used = machine(), versions()
    named = ", ".join(f"{name} {number}" for name, number in used.items())
    today = datetime.now(timezone.utc).date().isoformat()
    written = [f"{where['cpu']}, {where['cores']} cores; {named}; {today}. {clients}", ""]
    for line in lines:
        print(line, flush=True)
        written.append(f"* {line}")
    return "\n".join(written)


def write(target: str, text: str) -> None:
    """Put a text between the marks of a make target."""
    begin, end = f"<!-- begin: make {target} -->", f"<!-- end: make {target} -->"
    page = PAGE.read_text()
    before, found, rest = page.partition(begin)
    assert found and end in rest, f"{PAGE} has no marks of make {target}"
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
