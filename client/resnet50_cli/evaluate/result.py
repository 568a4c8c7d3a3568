"""Result of an evaluation, for all outputs."""

from __future__ import annotations

from dataclasses import dataclass

from resnet50_bulk.file_names import name_to_text
from resnet50_client.types import Classification, PublishedAccuracy, Variant

from ..output import error_code
from .answers import Answered
from .statistics import Accuracy, Counts, Difference, PairCounts, Ranks

# Lists of images end here, so that memory does not grow with their number.
MAX_LISTED = 1000
TOP_K = 5


@dataclass(frozen=True)
class PublishedDifference:
    """A measured accuracy minus the published one, which is taken as exact.

    Attributes:
        published: The published accuracy in percent.
        percent: The difference in percentage points.
        low: Lower limit of its confidence interval (95%) in percentage points.
        high: Upper limit; the published figure is plausible if 0 lies between the two.
    """

    published: float
    percent: float
    low: float
    high: float

    @classmethod
    def of(cls, accuracy: Accuracy | None, published: float | None) -> PublishedDifference | None:
        """Return the difference; None if one of the accuracies is unknown."""
        if accuracy is None or published is None:
            return None
        return cls(
            published,
            accuracy.percent - published,
            accuracy.low - published,
            accuracy.high - published,
        )


@dataclass(frozen=True)
class VariantResult:
    """Accuracy of one variant.

    Attributes:
        name: Name of the variant.
        digest: SHA-256 of its weights.
        engine: Its engine.
        device: Its device.
        precision: Its precision.
        trained: False for random weights.
        acc_at_1: Top-1 accuracy; None without answers.
        acc_at_5: Top-5 accuracy; None without answers or with at most five categories.
        published_dataset: Data set of the published accuracy; None if none is published.
        published_at_1: Difference from the published top-1 accuracy.
        published_at_5: Difference from the published top-5 accuracy.
    """

    name: str
    digest: str
    engine: str
    device: str
    precision: str
    trained: bool
    acc_at_1: Accuracy | None
    acc_at_5: Accuracy | None
    published_dataset: str | None
    published_at_1: PublishedDifference | None
    published_at_5: PublishedDifference | None

    @classmethod
    def of(cls, variant: Variant, counts: Counts) -> VariantResult:
        """Return the result of a variant's counts."""
        at_1 = counts.accuracy(1)
        at_5 = counts.accuracy(5) if variant.category_count > TOP_K else None
        published = variant.published_accuracy or PublishedAccuracy("", 0.0, None)
        known = variant.published_accuracy is not None
        return cls(
            variant.name,
            variant.digest or "-",
            variant.engine,
            variant.device,
            variant.precision,
            variant.trained,
            at_1,
            at_5,
            published.dataset if known else None,
            PublishedDifference.of(at_1, published.acc_at_1 if known else None),
            PublishedDifference.of(at_5, published.acc_at_5),
        )


@dataclass(frozen=True)
class CategoryResult:
    """Accuracy of the images of one category.

    Attributes:
        index: Index of the category.
        label: Its name.
        acc_at_1: Top-1 accuracy.
        acc_at_5: Top-5 accuracy; None as in `VariantResult`.
    """

    index: int
    label: str
    acc_at_1: Accuracy
    acc_at_5: Accuracy | None


@dataclass(frozen=True)
class Confusion:
    """Wrong answers for the images of one category.

    Attributes:
        label: Name of the correct category.
        answered: Name of the first category of the answers.
        images: Number of images.
    """

    label: str
    answered: str
    images: int


@dataclass(frozen=True)
class FailedImage:
    """An image without an answer.

    Attributes:
        path: Its path, as `name_to_text` writes it.
        code: Machine-readable code of its error.
        message: Text of its error.
    """

    path: str
    code: str
    message: str


@dataclass(frozen=True)
class DifferingImage:
    """An image whose first category differs between the two variants.

    Attributes:
        path: Its path, as `name_to_text` writes it.
        label: Name of the correct category.
        first: Name of the first category of the variant.
        second: Name of the first category of the other variant.
    """

    path: str
    label: str
    first: str
    second: str


@dataclass(frozen=True)
class ComparisonResult:
    """Comparison of the variant with another one, on the same images.

    Attributes:
        other: The other variant.
        agreement: Share of images with the same first category, 0 to 1.
        difference_at_1: Top-1 accuracy of the other variant minus that of the first.
        difference_at_5: The same for the top-5 accuracy; None as in `VariantResult`.
        differing: Number of images whose first category differs.
        differing_images: The first `MAX_LISTED` of them.
    """

    other: VariantResult
    agreement: float
    difference_at_1: Difference
    difference_at_5: Difference | None
    differing: int
    differing_images: list[DifferingImage]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a variant on labelled images.

    Attributes:
        folder: The folder, as `name_to_text` writes it.
        complete: False if the run was interrupted or failed: the rest is about its answers so far.
        images: Number of labelled images.
        answered: Number of those with an answer, on which all accuracies are based.
        failed: Number of those with an error.
        failed_images: The first `MAX_LISTED` of them.
        left_out: Number of files in the folder that are no images, by reason.
        variant: The variant and its accuracy.
        category_count: Number of the variant's categories.
        categories: Results of the categories that have images, by index.
        confusions: Wrong answers by pair of categories, the most frequent first.
        comparison: Comparison with the other variant; None if there is none, or without answers.
    """

    folder: str
    complete: bool
    images: int
    answered: int
    failed: int
    failed_images: list[FailedImage]
    left_out: dict[str, int]
    variant: VariantResult
    category_count: int
    categories: list[CategoryResult]
    confusions: list[Confusion]
    comparison: ComparisonResult | None


class Tally:
    """Collects the outcomes of a run.

    Args:
        variants: The variant, and the other one if two are compared; they have equal categories.
    """

    def __init__(self, variants: list[Variant]) -> None:
        self.failed = 0
        self._variants = variants
        self._names = variants[0].categories
        self._counts = [Counts() for _ in variants]
        self._pairs = PairCounts()
        self._failed_images: list[FailedImage] = []
        self._differing_images: list[DifferingImage] = []

    def add(self, answered: Answered) -> Exception | None:
        """Count an image; return its error. An image with one error counts for no variant."""
        image, results = answered.image, []
        for outcome in answered.outcomes:
            if isinstance(outcome, Exception):
                self.failed += 1
                if len(self._failed_images) < MAX_LISTED:
                    path = name_to_text(image.path)
                    failed = FailedImage(path, error_code(outcome), str(outcome))
                    self._failed_images.append(failed)
                return outcome
            results.append(outcome)
        ranks = [Ranks.of(image.label, _indices(result)) for result in results]
        for counts, one in zip(self._counts, ranks, strict=True):
            counts.add(image.label, one)
        if len(ranks) == 2:
            self._compare(answered, *ranks)
        return None

    def evaluation(
        self, folder: str, images: int, left_out: dict[str, int], complete: bool
    ) -> Evaluation:
        """Return the result so far; arguments as of `Evaluation`."""
        first, counts = self._variants[0], self._counts[0]
        many = first.category_count > TOP_K
        categories = []
        for index in sorted(counts.images):
            at_1, at_5 = counts.accuracy(1, index), counts.accuracy(5, index)
            assert at_1 is not None
            one = CategoryResult(index, self._names[index], at_1, at_5 if many else None)
            categories.append(one)
        # Equal counts in the order of the categories, so that runs can be compared.
        confused = sorted(counts.confused.items(), key=lambda one: (-one[1], one[0]))
        return Evaluation(
            folder=name_to_text(folder),
            complete=complete,
            images=images,
            answered=sum(counts.images.values()),
            failed=self.failed,
            failed_images=self._failed_images,
            left_out=left_out,
            variant=VariantResult.of(first, counts),
            category_count=first.category_count,
            categories=categories,
            confusions=[
                Confusion(self._names[label], self._name(top), number)
                for (label, top), number in confused
            ],
            comparison=self._comparison() if self._pairs.images else None,
        )

    def _name(self, index: int) -> str:
        """Return the name of a category of an answer, which a server may say wrongly."""
        return self._names[index] if index < len(self._names) else f"category {index}"

    def _compare(self, answered: Answered, first: Ranks, second: Ranks) -> None:
        self._pairs.add(first, second)
        if first.top != second.top and len(self._differing_images) < MAX_LISTED:
            indices = (answered.image.label, first.top, second.top)
            names = [self._name(index) for index in indices]
            self._differing_images.append(DifferingImage(name_to_text(answered.image.path), *names))

    def _comparison(self) -> ComparisonResult:
        pairs, other = self._pairs, self._variants[1]
        return ComparisonResult(
            other=VariantResult.of(other, self._counts[1]),
            agreement=pairs.agreed / pairs.images,
            difference_at_1=pairs.difference(1),
            difference_at_5=pairs.difference(5) if other.category_count > TOP_K else None,
            differing=pairs.images - pairs.agreed,
            differing_images=self._differing_images,
        )


def _indices(result: Classification) -> list[int]:
    return [category.index for category in result]
