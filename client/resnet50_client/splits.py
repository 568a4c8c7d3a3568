"""Reports of traffic splits: plain immutable values, without protobuf or gRPC."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrafficSplit:
    """How requests for a variant are used to judge another one.

    Attributes:
        variant: The name of the one that requests ask for.
        candidate: The name of the one that is judged.
        canary_percent: Share of callers that the candidate answers, 0 to 100.
        shadow_percent: Share of the variant's images that the candidate computes as well, 0 to 100.
        canary_embeddings: Whether the candidate answers them also where they ask for embeddings.
    """

    variant: str
    candidate: str
    canary_percent: float
    shadow_percent: float
    canary_embeddings: bool = False


@dataclass(frozen=True)
class TrafficShare:
    """Requests and frames that one side of a split took.

    Attributes:
        answered: How many were answered.
        failed: How many were not, for whatever reason.
        p50_ms: Median of the latest 1,000 from their arrival to the answer, in milliseconds.
        p99_ms: 99 of 100 of them took no longer.
    """

    answered: int
    failed: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Comparison:
    """Two variants' answers to the same images.

    Attributes:
        images: How many.
        top_1_agreement: Share of them whose first category has the same label, 0 to 1.
        embedding_cosine: Mean cosine of their embeddings, which says nothing of weights that were
            trained apart.
        min_embedding_cosine: The smallest.
        variant_compute_ms: The variant's batches on the engine, in milliseconds: median of the
            latest 1,000.
        candidate_compute_ms: The same of the candidate's, which hold one image as a rule.
    """

    images: int
    top_1_agreement: float
    embedding_cosine: float
    min_embedding_cosine: float
    variant_compute_ms: float
    candidate_compute_ms: float


@dataclass(frozen=True)
class TrafficReport:
    """Counts of a traffic split on one server.

    Attributes:
        split: The split.
        variant_digest: Of the variant's weights that this was counted with, 64 hex digits.
        candidate_digest: The same of the candidate's.
        elapsed_s: For how long, in seconds.
        variant_answers: What the variant answered of the requests that came for it.
        candidate_answers: What the candidate answered of them.
        comparison: Of the images that both computed; None until there is one.
        skipped: Images that were to be compared and were not, since the server was busy.
        failed: Images that the variant answered and on which the candidate failed.
        ended: Why the server has ended the split by itself; "" while it holds.
    """

    split: TrafficSplit
    variant_digest: str
    candidate_digest: str
    elapsed_s: float
    variant_answers: TrafficShare
    candidate_answers: TrafficShare
    comparison: Comparison | None
    skipped: int
    failed: int
    ended: str = ""
