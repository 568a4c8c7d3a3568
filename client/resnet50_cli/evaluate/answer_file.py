"""CSV file with one row per image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import TextIO

from resnet50_bulk.file_names import name_to_text
from resnet50_client.types import Classification

from ..output import error_code
from .answers import Answered, Outcome

COLUMNS = ("path", "label", "top", "probability", "rank", "error")
OTHER_COLUMNS = ("other_top", "other_probability", "other_rank", "other_error")


class AnswerFile:
    """Writes the outcome of each image.

    Columns: path; name of the correct category; name and probability of the first category; rank of
    the correct category from 1, empty if it is not among the first five; code of the error.

    Args:
        file: The file, open for text without translation of line ends.
        categories: Names of the categories.
        variants: Number of variants: 2 adds the columns of the other one.
    """

    def __init__(self, file: TextIO, categories: Sequence[str], variants: int) -> None:
        self._rows = csv.writer(file)
        self._categories = categories
        self._rows.writerow(COLUMNS + (OTHER_COLUMNS if variants == 2 else ()))

    def write(self, answered: Answered) -> None:
        """Write a row."""
        image = answered.image
        row: list[object] = [name_to_text(image.path), self._categories[image.label]]
        for outcome in answered.outcomes:
            row += _cells(outcome, image.label)
        self._rows.writerow(row)


def _cells(outcome: Outcome, label: int) -> list[object]:
    if not isinstance(outcome, Classification):
        return ["", "", "", error_code(outcome)]
    indices = [category.index for category in outcome]
    rank = indices.index(label) + 1 if label in indices else ""
    return [outcome.top.label, round(outcome.top.probability, 6), rank, ""]
