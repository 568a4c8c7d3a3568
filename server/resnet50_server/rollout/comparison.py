"""Comparison of the two sides of a traffic split: answers, times, agreement on the same images."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Medians and the like are of so many, the latest.
WINDOW = 1000


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
