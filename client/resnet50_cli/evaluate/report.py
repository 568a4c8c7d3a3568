"""Report of an evaluation as one self-contained HTML file, without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..formatting import Grid
from ..html_report import render
from ..output import printable
from .result import ComparisonResult, Evaluation
from .table import (
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


@dataclass(frozen=True)
class _Cell:
    """Images of one category that were answered with one category.

    Attributes:
        count: Number of images.
        share: Their fraction of the category's images.
        correct: The answer is correct.
    """

    count: int
    share: float
    correct: bool


@dataclass(frozen=True)
class _Matrix:
    """Confusion matrix: a row per category, its images by answered category.

    Attributes:
        names: Names of the columns.
        rows: Name and cells of each row.
    """

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[_Cell]]]


@dataclass(frozen=True)
class _Section:
    """A part of the report: lines, then a table or the matrix."""

    title: str
    grid: Grid | None = None
    lines: Sequence[str] = ()
    matrix: _Matrix | None = None


def write_html(found: Evaluation, path: Path) -> None:
    """Write the report.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_text(page(found), encoding="utf-8")


def page(found: Evaluation) -> str:
    """Return the report; names of files and categories are escaped."""
    found = printable(found)
    return render(
        "resnet50_cli/evaluate/report.html",
        title=f"resnet50 evaluate: {found.variant.name}",
        about=heading(found),
        warnings=warnings(found),
        tiles=list(_tiles(found)),
        sections=list(_sections(found)),
    )


def _tiles(found: Evaluation) -> Iterator[tuple[str, str]]:
    """Yield value and name of the key figures."""
    variant = found.variant
    for name, accuracy in (("acc@1", variant.acc_at_1), ("acc@5", variant.acc_at_5)):
        if accuracy is not None:
            interval = f"{accuracy.low:.2f} to {accuracy.high:.2f}"
            yield f"{accuracy.percent:.2f}%", f"{name}, 95%: {interval}"
    if variant.published_at_1 is not None:
        one = variant.published_at_1
        yield f"{one.percent:+.2f}", f"from the published {one.published:.2f}%"
    yield str(found.answered), "images"
    yield str(found.failed), "failed images"


def _sections(found: Evaluation) -> Iterator[_Section]:
    yield _Section("Accuracy", accuracies(found))
    compared = found.comparison
    if compared is not None:
        yield _Section("Comparison", differences(compared), comparison_lines(compared))
        if compared.differing:
            grid = _first(_differing(compared), compared.differing)
            yield _Section("Images that differ", grid)
    if 1 < len(found.categories) <= _MAX_MATRIX:
        yield _Section("Confusion matrix", matrix=_matrix(found))
    yield _Section("Categories, the lowest accuracy first", categories(found))
    if found.confusions:
        grid = _first(confusions(found, _MAX_CONFUSIONS), len(found.confusions))
        yield _Section("Confusions", grid)
    if found.failed:
        yield _Section("Failed images", _first(_failed(found), found.failed))
    if found.left_out:
        counts = [(reason, str(count)) for reason, count in found.left_out.items()]
        yield _Section("Files that are no images", Grid(("kind", "files"), counts))


def _differing(compared: ComparisonResult) -> Grid:
    rows = [(one.path, one.label, one.first, one.second) for one in compared.differing_images]
    return Grid(("image", "category", "first variant", "second variant"), rows, texts=4)


def _failed(found: Evaluation) -> Grid:
    rows = [(one.path, one.code, one.message) for one in found.failed_images]
    return Grid(("image", "code", "error"), rows, texts=3)


def _first(grid: Grid, count: int) -> Grid:
    """Return a grid that says if it has only the first of `count` rows."""
    shown = len(grid.rows)
    return replace(grid, note=f"the first {shown} of {count}") if shown < count else grid


def _matrix(found: Evaluation) -> _Matrix:
    names = [one.label for one in found.categories]
    names += sorted({one.answered for one in found.confusions} - set(names))
    counts = {(one.label, one.answered): one.images for one in found.confusions}
    counts |= {(one.label, one.label): one.acc_at_1.correct for one in found.categories}
    rows = []
    for category in found.categories:
        label, cells = category.label, []
        for name in names:
            count = counts.get((label, name), 0)
            cells.append(_Cell(count, count / category.acc_at_1.images, name == label))
        rows.append((label, cells))
    return _Matrix(names, rows)
