"""Draws docs/*.dot with Graphviz, and adds a dark mode: python -m docs.draw.graph."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .svg import TONES

DOCS = Path(__file__).resolve().parents[1]
# Colours of the drawing, and the tone whose fill or line replaces each in dark mode.
FILLS = {"white": "ink", "#eef3fb": "blue", "#fdf3e1": "orange", "#f4f4f4": "grey"}
LINES = {
    "#4a6fa5": "blue",
    "#9db2d3": "blue",
    "#b8863b": "orange",
    "#d9b777": "orange",
    "#888888": "grey",
    "#44546a": "muted",
}


def with_dark_mode(svg: str) -> str:
    """Return a drawing of Graphviz with a style for dark mode."""
    rules = [f"text{{fill:{TONES['ink'][1][1]}}}"]
    rules += [f'[fill="{light}"]{{fill:{TONES[tone][1][0]}}}' for light, tone in FILLS.items()]
    for light, tone in LINES.items():
        dark = TONES[tone][1][1]
        rules += [f'[stroke="{light}"]{{stroke:{dark}}}', f'[fill="{light}"]{{fill:{dark}}}']
    style = f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>"
    return svg.replace('<g id="graph0"', f'{style}\n<g id="graph0"', 1)


def main() -> None:
    """Draw each graph beside its source."""
    for source in sorted(DOCS.glob("*.dot")):
        drawn = subprocess.run(
            ["dot", "-Tsvg", source], capture_output=True, check=True, encoding="utf-8"
        ).stdout
        source.with_suffix(".svg").write_text(with_dark_mode(drawn), encoding="utf-8")


if __name__ == "__main__":
    main()
