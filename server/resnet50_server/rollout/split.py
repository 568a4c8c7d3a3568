"""Traffic splits: settings, selection of canary callers, statistics. No I/O, no event loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from resnet50_server.errors import InvalidRequest
from resnet50_server.variants.spec import VariantSpec

# Medians and the like are of so many, the latest.
WINDOW = 1000
# Shares of callers come in steps of 0.01%.
STEPS = 10_000


@dataclass(frozen=True)
class Split:
    """How requests for a variant are used to judge another one.

    Attributes:
        variant: The name of the one that is asked for.
        candidate: The name of the one that is judged.
        canary_percent: Share of callers that the candidate answers, 0 to 100 in steps of 0.01.
        shadow_percent: Share of the variant's images that the candidate computes as well, 0 to 100.
        canary_embeddings: Whether the candidate answers them also where they ask for embeddings.

    Raises:
        InvalidRequest: These are no shares, or both are 0.
    """

    variant: str
    candidate: str
    canary_percent: float = 0.0
    shadow_percent: float = 0.0
    canary_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.variant == self.candidate:
            raise InvalidRequest(
                "split.candidate", f"is {self.candidate}, as the variant; name another one"
            )
        for name in ("canary_percent", "shadow_percent"):
            percent = getattr(self, name)
            if not 0.0 <= percent <= 100.0:  # NaN neither
                raise InvalidRequest(f"split.{name}", f"is {percent:g}, must be 0 to 100")
        steps = self.canary_percent * STEPS / 100
        if abs(steps - round(steps)) > 1e-6:
            raise InvalidRequest(
                "split.canary_percent", f"is {self.canary_percent:g}, must be in steps of 0.01"
            )
        if not self.canary_percent and not self.shadow_percent:
            raise InvalidRequest(
                "split.shadow_percent",
                "is 0, as canary_percent is: nothing would be compared; set one of them, or delete"
                " the split",
            )

    def is_canary(self, key: str) -> bool:
        """Return whether the candidate answers a caller: always the same, on every server.

        A caller's place in line depends on its key and the two names only, so that another split
        picks other callers first, and a larger share adds callers to those of a smaller one.

        Args:
            key: Key of the caller.
        """
        drawn = hashlib.sha256("\n".join((self.variant, self.candidate, key)).encode()).digest()
        place = int.from_bytes(drawn[:8], "big") * STEPS >> 64
        return place < round(self.canary_percent * STEPS / 100)


def obstacle(split: Split, variant: VariantSpec, candidate: VariantSpec) -> tuple[str, str] | None:
    """Return why two variants cannot have a split: the field, and the reason; None if they can."""
    for field_name, one in (("variant", variant), ("candidate", candidate)):
        if not one.categories:
            return (
                field_name,
                f"{one.name} has no classification head, and a split compares categories: choose"
                " variants that have one",
            )
    if split.canary_percent and (difference := category_difference(variant, candidate)):
        return (
            "canary_percent",
            f"{difference}; its answers would mean something else to callers who asked for the"
            " variant: compare such weights with shadow_percent only",
        )
    return None


def category_difference(variant: VariantSpec, candidate: VariantSpec) -> str | None:
    """Say how the categories of two variants differ; None if they are the same, in one order."""
    ours, theirs = variant.categories, candidate.categories
    names = f"{candidate.name} has other categories than {variant.name}"
    if len(ours) != len(theirs):
        return f"{names}: {len(theirs)} instead of {len(ours)}"
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            return f"{names}: number {index} is {other[:64]!r} instead of {one[:64]!r}"
    return None


class RecentValues:
    """The latest `WINDOW` of many numbers."""

    def __init__(self) -> None:
        self._numbers: deque[float] = deque(maxlen=WINDOW)

    def add(self, number: float) -> None:
        """Take in one more."""
        self._numbers.append(number)

    def quantile(self, q: float) -> float:
        """Return the smallest that a share `q` of them does not exceed; 0 if there are none."""
        ordered = sorted(self._numbers)
        return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else 0.0


@dataclass
class SideStats:
    """Requests and frames that one side of a split took.

    Attributes:
        answered: How many were answered.
        failed: How many were not, for whatever reason.
        total_s: From arrival to answer, in seconds.
    """

    answered: int = 0
    failed: int = 0
    total_s: RecentValues = field(default_factory=RecentValues)


@dataclass(frozen=True)
class Output:
    """One variant's result for an image.

    Attributes:
        label: Of its first category.
        embedding: float32 [D].
        compute_s: Its batch on the engine, in seconds.
    """

    label: str
    embedding: NDArray[np.float32]
    compute_s: float


@dataclass
class Comparison:
    """Two variants' answers to the same images.

    Attributes:
        images: How many.
        agreed: Of how many the first category has the same label.
        cosines: Sum of the cosines of their embeddings.
        min_cosine: The smallest of them.
        variant_s: The variant's batches on the engine, in seconds.
        candidate_s: The candidate's.
    """

    images: int = 0
    agreed: int = 0
    cosines: float = 0.0
    min_cosine: float = 1.0
    variant_s: RecentValues = field(default_factory=RecentValues)
    candidate_s: RecentValues = field(default_factory=RecentValues)

    def add(self, variant: Output, candidate: Output) -> None:
        """Count an image."""
        cosine = _cosine(variant.embedding, candidate.embedding)
        self.images += 1
        self.agreed += variant.label == candidate.label
        self.cosines += cosine
        self.min_cosine = min(self.min_cosine, cosine)
        self.variant_s.add(variant.compute_s)
        self.candidate_s.add(candidate.compute_s)


@dataclass
class SplitStats:
    """Statistics of a split for one pair of weights.

    Attributes:
        variant_digest: Of the variant's weights.
        candidate_digest: Of the candidate's.
        clock: Tells the time, in seconds.
        variant_answers: Requests that the variant answered.
        candidate_answers: Requests that the candidate answered.
        comparison: Of the images that both computed.
        skipped: Images that were to be compared, and the server was busy.
        failed: Images that the variant answered and the candidate did not.
    """

    variant_digest: str
    candidate_digest: str
    clock: Callable[[], float] = time.monotonic
    variant_answers: SideStats = field(default_factory=SideStats)
    candidate_answers: SideStats = field(default_factory=SideStats)
    comparison: Comparison = field(default_factory=Comparison)
    skipped: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._ended: float | None = None

    def stop(self) -> None:
        """Let no more time pass."""
        self._ended = self.clock()

    @property
    def elapsed_s(self) -> float:
        """For how long, in seconds."""
        return (self.clock() if self._ended is None else self._ended) - self._began


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the cosine of two vectors; 0 if one is all zeros, which has no direction."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = math.sqrt(float(a @ a) * float(b @ b))
    # Rounding may leave a little over 1.
    return max(-1.0, min(1.0, float(a @ b) / lengths)) if lengths else 0.0
