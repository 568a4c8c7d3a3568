"""Result of an evaluation as tables, for a terminal and for the report."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ..formatting import NOTHING, Grid, terminal_table
from .result import ComparisonResult, Evaluation, PublishedDifference, VariantResult
from .statistics import Accuracy, Difference

# The terminal shows as many categories and pairs; JSON and the report have all of them.
SHOWN = 10


def tables(found: Evaluation) -> RenderableType:
    """Return the result for a terminal."""
    parts: list[RenderableType] = [Text(line) for line in [*heading(found), *warnings(found)]]
    parts.append(terminal_table(accuracies(found)))
    if found.comparison is not None:
        parts += [Text(line) for line in comparison_lines(found.comparison)]
        parts.append(terminal_table(differences(found.comparison)))
    worst = sorted(found.categories, key=lambda one: (one.acc_at_1.percent, one.index))
    if len(worst) > 1 and worst[0].acc_at_1.percent < 100:
        parts += [
            Text("categories with the lowest acc@1"),
            terminal_table(categories(found, SHOWN)),
        ]
    if found.confusions:
        parts += [Text("most frequent confusions"), terminal_table(confusions(found, SHOWN))]
    return Group(*parts)


def heading(found: Evaluation) -> list[str]:
    """Return lines about the images and the variants."""
    images = _counted(found.answered, "image", "images")
    covered = _counted(len(found.categories), "category", "categories")
    return [
        f"{images} of {covered} in {found.folder}",
        describe(found.variant),
    ]


def warnings(found: Evaluation) -> list[str]:
    """Return lines about limits of the result."""
    lines = []
    if not found.complete:
        done = found.answered + found.failed
        lines.append(f"incomplete: {done} of {found.images} images were evaluated")
    if found.failed:
        failed = _counted(found.failed, "image", "images")
        lines.append(f"{failed} failed; accuracies are about the others")
    if not found.variant.trained:
        lines.append("the variant is untrained: its answers are meaningless")
    covered = len(found.categories)
    if found.variant.published_dataset is not None and covered < found.category_count:
        lines.append(
            f"{covered} of {found.category_count} categories have images: the published accuracy is"
            " about all of them"
        )
    return lines


def describe(variant: VariantResult) -> str:
    """Return a variant's weights, engine, device and precision in one line."""
    where = f"{variant.engine}, {variant.device}, {variant.precision}"
    return f"{variant.name}@{variant.digest[:12]} on {where}"


def accuracies(found: Evaluation) -> Grid:
    """Return the accuracies beside the published ones, for each variant."""
    rows = []
    compared = found.comparison
    for variant in (found.variant, *([compared.other] if compared is not None else [])):
        figures = (
            ("acc@1", variant.acc_at_1, variant.published_at_1),
            ("acc@5", variant.acc_at_5, variant.published_at_5),
        )
        for name, accuracy, published in figures:
            if accuracy is not None:
                label = f"{variant.name} {name}" if compared is not None else name
                rows.append((label, *_accuracy(accuracy), *_published(published)))
    dataset = found.variant.published_dataset
    source = f"published ({dataset})" if dataset else "published"
    return Grid(("", "%", "95% interval", "correct", source, "difference", "95% interval"), rows)


def comparison_lines(compared: ComparisonResult) -> list[str]:
    """Return lines about the agreement of two variants."""
    return [
        f"compared with {describe(compared.other)}: the first category is the same for"
        f" {100 * compared.agreement:.2f}% of the images, and differs for {compared.differing}"
    ]


def differences(compared: ComparisonResult) -> Grid:
    """Return the differences of two variants' accuracies."""
    rows = [
        (name, *_difference(one))
        for name, one in (("acc@1", compared.difference_at_1), ("acc@5", compared.difference_at_5))
        if one is not None
    ]
    headings = ("", "difference", "95% interval", "only first correct", "only second correct", "p")
    return Grid(headings, rows)


def categories(found: Evaluation, count: int | None = None) -> Grid:
    """Return the categories with the lowest accuracy first, `count` of them or all."""
    ordered = sorted(found.categories, key=lambda one: (one.acc_at_1.percent, one.index))
    confused: dict[str, str] = {}
    for one in found.confusions:
        confused.setdefault(one.label, f"{one.answered} ({one.images})")
    rows = [
        (
            one.label,
            confused.get(one.label, NOTHING),
            str(one.acc_at_1.images),
            f"{one.acc_at_1.percent:.2f}",
            _interval(one.acc_at_1),
            f"{one.acc_at_5.percent:.2f}" if one.acc_at_5 is not None else NOTHING,
        )
        for one in ordered[:count]
    ]
    headings = ("category", "most often taken for", "images", "acc@1 %", "95% interval", "acc@5 %")
    return Grid(headings, rows, texts=2)


def confusions(found: Evaluation, count: int | None = None) -> Grid:
    """Return pairs of categories with the most wrong answers first, `count` of them or all."""
    rows = [(one.label, one.answered, str(one.images)) for one in found.confusions[:count]]
    return Grid(("correct category", "answered category", "images"), rows, texts=2)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _accuracy(accuracy: Accuracy) -> tuple[str, str, str]:
    correct = f"{accuracy.correct} of {accuracy.images}"
    return f"{accuracy.percent:.2f}", _interval(accuracy), correct


def _published(one: PublishedDifference | None) -> tuple[str, str, str]:
    if one is None:
        return NOTHING, NOTHING, NOTHING
    return f"{one.published:.2f}", f"{one.percent:+.2f}", _signed_interval(one)


def _difference(one: Difference) -> tuple[str, ...]:
    p_value = f"{one.p_value:.3f}" if one.p_value >= 0.001 else "< 0.001"
    only = (str(one.only_first), str(one.only_second))
    return f"{one.percent:+.2f}", _signed_interval(one), *only, p_value


def _interval(accuracy: Accuracy) -> str:
    return f"{accuracy.low:.2f} to {accuracy.high:.2f}"


def _signed_interval(one: Difference | PublishedDifference) -> str:
    return f"{one.low:+.2f} to {one.high:+.2f}"
