"""Report of an evaluation as one self-contained HTML file, without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from ..output import printable
from .result import ComparisonResult, Evaluation
from .table import (
    Grid,
    accuracies,
    categories,
    comparison_lines,
    confusions,
    differences,
    heading,
    warnings,
)

# A larger confusion matrix is not readable; the list of pairs is always there.
_MAX_MATRIX = 40
_MAX_CONFUSIONS = 500


def write_html(found: Evaluation, path: Path) -> None:
    """Write the report.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_text(page(found), encoding="utf-8")


def page(found: Evaluation) -> str:
    """Return the report; names of files and categories are escaped."""
    found = printable(found)
    template = Template(resources.files(__package__).joinpath("report.html").read_text("utf-8"))
    return template.substitute(
        title=escape(f"resnet50 evaluate: {found.variant.name}"),
        about=_paragraphs("about", heading(found)),
        warnings=_paragraphs("warning", warnings(found)),
        tiles="".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
            for name, value in _tiles(found)
        ),
        sections="".join(
            f"<h2>{escape(title)}</h2>\n{content}" for title, content in _sections(found)
        ),
    )


def _tiles(found: Evaluation) -> Iterator[tuple[str, str]]:
    variant = found.variant
    for name, accuracy in (("acc@1", variant.acc_at_1), ("acc@5", variant.acc_at_5)):
        if accuracy is not None:
            yield (
                f"{name}, 95%: {accuracy.low:.2f} to {accuracy.high:.2f}",
                f"{accuracy.percent:.2f}%",
            )
    if variant.published_at_1 is not None:
        one = variant.published_at_1
        yield f"from the published {one.published:.2f}%", f"{one.percent:+.2f}"
    yield "images", str(found.answered)
    yield "failed images", str(found.failed)


def _sections(found: Evaluation) -> Iterator[tuple[str, str]]:
    yield "Accuracy", _table(accuracies(found))
    compared = found.comparison
    if compared is not None:
        about = _paragraphs("note", comparison_lines(compared))
        yield "Comparison", about + _table(differences(compared))
        if compared.differing:
            table = _table(_differing(compared))
            shown = len(compared.differing_images)
            yield "Images that differ", table + _omitted(shown, compared.differing)
    if 1 < len(found.categories) <= _MAX_MATRIX:
        yield "Confusion matrix", _matrix(found)
    yield "Categories, the lowest accuracy first", _table(categories(found))
    if found.confusions:
        table = _table(confusions(found, _MAX_CONFUSIONS))
        shown = min(len(found.confusions), _MAX_CONFUSIONS)
        yield "Confusions", table + _omitted(shown, len(found.confusions))
    if found.failed:
        table = _table(_failed(found))
        yield "Failed images", table + _omitted(len(found.failed_images), found.failed)
    if found.left_out:
        counts = [(reason, str(count)) for reason, count in found.left_out.items()]
        yield "Files that are no images", _table(Grid(("kind", "files"), counts))


def _differing(compared: ComparisonResult) -> Grid:
    rows = [(one.path, one.label, one.first, one.second) for one in compared.differing_images]
    return Grid(("image", "category", "first variant", "second variant"), rows, texts=4)


def _failed(found: Evaluation) -> Grid:
    rows = [(one.path, one.code, one.message) for one in found.failed_images]
    return Grid(("image", "code", "error"), rows, texts=3)


def _matrix(found: Evaluation) -> str:
    """Return the confusion matrix: a row per category, its images by answered category."""
    names = [one.label for one in found.categories]
    names += sorted({one.answered for one in found.confusions} - set(names))
    counts = {(one.label, one.answered): one.images for one in found.confusions}
    counts |= {(one.label, one.label): one.acc_at_1.correct for one in found.categories}
    head = "".join(f"<th><span>{escape(name)}</span></th>" for name in names)
    body = ""
    for category in found.categories:
        cells = ""
        for name in names:
            count = counts.get((category.label, name), 0)
            share = count / category.acc_at_1.images
            kind = "right" if name == category.label else "wrong"
            shown = str(count) if count else ""
            cells += f'<td class="{kind}" style="--share: {share:.3f}">{shown}</td>'
        body += f"<tr><th>{escape(category.label)}</th>{cells}</tr>\n"
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
        '<p class="note">rows: correct category; columns: answered category</p>\n'
    )


def _table(grid: Grid) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        written = ""
        for position, cell in enumerate(cells):
            kind = ' class="text"' if position < grid.texts else ""
            written += f"<{tag}{kind}>{escape(cell)}</{tag}>"
        return f"<tr>{written}</tr>\n"

    body = "".join(row(cells, "td") for cells in grid.rows)
    return (
        f'<div class="scroll"><table><thead>{row(grid.headings, "th")}</thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _paragraphs(kind: str, lines: list[str]) -> str:
    return "".join(f'<p class="{kind}">{escape(line)}</p>\n' for line in lines)


def _omitted(shown: int, count: int) -> str:
    return f'<p class="note">the first {shown} of {count}</p>\n' if shown < count else ""
