"""A drawing as SVG whose colours follow the reader's light or dark mode.

Each drawing has a panel of its own behind it, so that it is legible also where the page's mode is
not that of the browser. Lengths are pixels of the drawing's own width; y points down.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

Point = tuple[float, float]

# Fill and line by tone: in light mode, in dark mode.
TONES = {
    "blue": (("#ddf4ff", "#0969da"), ("#10233f", "#4493f8")),
    "orange": (("#fff1e5", "#bc4c00"), ("#2f1d10", "#f0883e")),
    "green": (("#dafbe1", "#1a7f37"), ("#12261e", "#3fb950")),
    "violet": (("#fbefff", "#8250df"), ("#221a33", "#ab7df8")),
    "red": (("#ffebe9", "#cf222e"), ("#2d1315", "#f85149")),
    "grey": (("#f6f8fa", "#8c959f"), ("#151b23", "#656c76")),
    "ink": (("#ffffff", "#1f2328"), ("#0d1117", "#f0f6fc")),
    "muted": (("#ffffff", "#59636e"), ("#0d1117", "#9198a1")),
    "faint": (("#ffffff", "#d1d9e0"), ("#0d1117", "#3d444d")),
}
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
_MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def _style() -> str:
    def variables(mode: int) -> str:
        return "".join(
            f"--{tone}-fill:{both[mode][0]};--{tone}:{both[mode][1]};"
            for tone, both in TONES.items()
        )

    rules = "".join(
        f".{tone}{{fill:var(--{tone}-fill);stroke:var(--{tone})}}"
        f".line.{tone}{{fill:none}}"
        f".text.{tone},.solid.{tone}{{fill:var(--{tone});stroke:none}}"
        for tone in TONES
    )
    return (
        f":root{{{variables(0)}}}\n"
        f"@media (prefers-color-scheme: dark){{:root{{{variables(1)}}}}}\n"
        f".text{{font-family:{_FONT}}}.mono{{font-family:{_MONO}}}{rules}"
    )


class Picture:
    """A drawing, written element by element.

    Args:
        width: Its width; 640 is legible in a column of text and on a phone.
        height: Its height.
        title: One sentence for readers who cannot see it.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img">\n<title>{escape(title)}</title>'
        )
        self._parts = [f'<rect class="solid ink-fill" width="{width:g}" height="{height:g}"/>']
        self._arrows: set[str] = set()

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        anchor: str = "start",
        tone: str = "ink",
        bold: bool = False,
    ) -> None:
        """Write lines of text; `y` is the baseline of the first, `anchor` start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        for number, line in enumerate(text.split("\n")):
            self._parts.append(
                f'<text class="text {tone}" x="{x:.4g}" y="{y + number * size * 1.3:.4g}" '
                f'font-size="{size:g}" text-anchor="{anchor}"{weight}>{escape(line)}</text>'
            )

    def monospaced(
        self, x: float, y: float, text: str, *, column: float, tone: str, bold: bool
    ) -> None:
        """Write a line of a terminal, whose characters are `column` wide whatever the font."""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text class="text mono {tone}" x="{x:.4g}" y="{y:.4g}" font-size="12.5" '
            f'textLength="{len(text) * column:.4g}" lengthAdjust="spacingAndGlyphs"{weight}>'
            f"{escape(text)}</text>"
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str = "",
        *,
        tone: str = "blue",
        size: float = 13,
        dashed: bool = False,
        bold: bool = False,
    ) -> None:
        """Draw a box with lines of text in its middle; `bold` makes the first line a heading."""
        radius = min(6, height / 4)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect class="{tone}" x="{x:.4g}" y="{y:.4g}" width="{width:.4g}" '
            f'height="{height:.4g}" rx="{radius:g}" stroke-width="1.3"{dashes}/>'
        )
        if text:
            lines = text.split("\n")
            first = y + height / 2 - (len(lines) - 1) * size * 0.65 + size * 0.35
            for number, line in enumerate(lines):
                self.text(
                    x + width / 2,
                    first + number * size * 1.3,
                    line,
                    size=size,
                    anchor="middle",
                    bold=bold and number == 0,
                )

    def line(
        self,
        points: Sequence[Point],
        *,
        tone: str = "muted",
        arrow: bool = False,
        dashed: bool = False,
        width: float = 1.5,
    ) -> None:
        """Draw a line through points; `arrow` puts a head at its end."""
        path = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        head = ""
        if arrow:
            self._arrows.add(tone)
            head = f' marker-end="url(#{tone})"'
        self._parts.append(
            f'<polyline class="line {tone}" points="{path}" '
            f'stroke-width="{width:g}"{dashes}{head}/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, *, tone: str) -> None:
        """Draw a filled bar without text."""
        self._parts.append(
            f'<rect class="solid {tone}" x="{x:.4g}" y="{y:.4g}" width="{width:.4g}" '
            f'height="{height:.4g}" rx="1.5"/>'
        )

    def dot(self, x: float, y: float, *, tone: str, radius: float = 4) -> None:
        """Draw a filled circle around a point."""
        self._parts.append(
            f'<circle class="solid {tone}" cx="{x:.4g}" cy="{y:.4g}" r="{radius:g}"/>'
        )

    def cross(self, x: float, y: float, *, tone: str = "red", radius: float = 4.5) -> None:
        """Draw a cross on a point."""
        for rise in (radius, -radius):
            self.line([(x - radius, y - rise), (x + radius, y + rise)], tone=tone, width=2.2)

    def svg(self) -> str:
        """Return the file's text."""
        markers = "".join(
            f'<marker id="{tone}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            f'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
            f'<path class="solid {tone}" d="M0,0.5 8,4 0,7.5z"/></marker>'
            for tone in sorted(self._arrows)
        )
        style = f"<style>{_style()}\n.ink-fill{{fill:var(--ink-fill)}}</style>"
        return "\n".join([self._head, style, f"<defs>{markers}</defs>", *self._parts, "</svg>\n"])
