"""Counts of an evaluation: memory depends on the number of categories, not of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .intervals import mcnemar, paired_difference, wilson


@dataclass(frozen=True)
class Accuracy:
    """Share of images whose category is among the first ones of the answer.

    Attributes:
        correct: Number of these images.
        images: Number of all images, at least 1.
        percent: The share in percent.
        low: Lower limit of its confidence interval (Wilson, 95%) in percent.
        high: Upper limit.
    """

    correct: int
    images: int
    percent: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, images: int) -> Accuracy:
        """Return the accuracy of `correct` out of `images`."""
        low, high = wilson(correct, images)
        return cls(correct, images, 100 * correct / images, 100 * low, 100 * high)


@dataclass(frozen=True)
class Difference:
    """Difference of two accuracies on the same images, the second minus the first.

    Attributes:
        percent: The difference in percentage points.
        low: Lower limit of its confidence interval (Tango, 95%) in percentage points.
        high: Upper limit.
        only_first: Number of images that only the first has correct.
        only_second: Number of images that only the second has correct.
        p_value: Of McNemar's test that there is no difference.
    """

    percent: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float

    @classmethod
    def of(cls, only_first: int, only_second: int, images: int) -> Difference:
        """Return the difference of two accuracies on `images` images."""
        low, high = paired_difference(only_first, only_second, images)
        return cls(
            percent=100 * (only_second - only_first) / images,
            low=100 * low,
            high=100 * high,
            only_first=only_first,
            only_second=only_second,
            p_value=mcnemar(only_first, only_second),
        )


@dataclass(frozen=True)
class Ranks:
    """How an image was classified.

    Attributes:
        top: Index of the first category.
        at_1: Whether the first category is correct.
        at_5: Whether the first five categories include the correct one.
    """

    top: int
    at_1: bool
    at_5: bool

    @classmethod
    def of(cls, label: int, categories: Sequence[int]) -> Ranks:
        """Return the ranks of an image.

        Args:
            label: Index of the correct category.
            categories: Indices of the first categories of the answer, most probable first.
        """
        return cls(categories[0], categories[0] == label, label in categories[:5])


class Counts:
    """Counts of a variant's answers, by category.

    Attributes:
        images: Number of answered images.
        correct_at_1: Number of those whose first category is correct.
        correct_at_5: Number of those whose first five categories include the correct one.
        confused: Number of wrong answers by correct and answered category.
    """

    def __init__(self) -> None:
        self.images: Counter[int] = Counter()
        self.correct_at_1: Counter[int] = Counter()
        self.correct_at_5: Counter[int] = Counter()
        self.confused: Counter[tuple[int, int]] = Counter()

    def add(self, label: int, ranks: Ranks) -> None:
        """Count an image of a category."""
        self.images[label] += 1
        self.correct_at_1[label] += ranks.at_1
        self.correct_at_5[label] += ranks.at_5
        if not ranks.at_1:
            self.confused[label, ranks.top] += 1

    def accuracy(self, at: int, label: int | None = None) -> Accuracy | None:
        """Return the accuracy at 1 or 5 of a category or of all; None without images."""
        correct = self.correct_at_1 if at == 1 else self.correct_at_5
        if label is not None:
            images = self.images[label]
            return Accuracy.of(correct[label], images) if images else None
        images = sum(self.images.values())
        return Accuracy.of(sum(correct.values()), images) if images else None


class PairCounts:
    """Counts of two variants' answers for the same images.

    Attributes:
        images: Number of images.
        agreed: Number of those with the same first category.
    """

    def __init__(self) -> None:
        self.images = 0
        self.agreed = 0
        self._only: Counter[tuple[int, str]] = Counter()

    def add(self, first: Ranks, second: Ranks) -> None:
        """Count an image."""
        self.images += 1
        self.agreed += first.top == second.top
        for at, one, other in ((1, first.at_1, second.at_1), (5, first.at_5, second.at_5)):
            if one != other:
                self._only[at, "first" if one else "second"] += 1

    def difference(self, at: int) -> Difference:
        """Return the difference of the accuracies at 1 or 5; there must be images."""
        return Difference.of(self._only[at, "first"], self._only[at, "second"], self.images)
