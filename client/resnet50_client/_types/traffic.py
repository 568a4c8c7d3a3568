"""Traffic splits and their results: plain immutable values, without protobuf or gRPC."""

from __future__ import annotations

from dataclasses import dataclass

from .record import Record


@dataclass(frozen=True)
class TrafficSplit(Record):
    """Split of a variant's traffic with a candidate.

    Attributes:
        variant: Name of the variant in requests.
        candidate: Name of the variant to compare with it.
        canary_percent: Percentage of callers served by the candidate, 0 to 100.
        shadow_percent: Percentage of the variant's images that the candidate also computes.
        canary_embeddings: True if the candidate serves canary callers' embeddings, too.
    """

    variant: str
    candidate: str
    canary_percent: float
    shadow_percent: float
    canary_embeddings: bool = False


@dataclass(frozen=True)
class TrafficShare(Record):
    """Requests and frames of one side of a split.

    Attributes:
        answered: Number of successful ones.
        failed: Number of failed ones.
        p50_ms: Median latency of the last 1,000 in milliseconds.
        p99_ms: 99th percentile of the same.
    """

    answered: int
    failed: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Comparison(Record):
    """Comparison of two variants' results for the same images.

    Attributes:
        images: Number of images.
        top_1_agreement: Fraction with the same top label, 0 to 1.
        embedding_cosine: Mean cosine similarity of embeddings; meaningless for weights that were
            trained separately.
        min_embedding_cosine: Minimum cosine similarity.
        variant_compute_ms: Median time of the variant's last 1,000 batches in milliseconds.
        candidate_compute_ms: The same of the candidate, whose batches usually have one image.
    """

    images: int
    top_1_agreement: float
    embedding_cosine: float
    min_embedding_cosine: float
    variant_compute_ms: float
    candidate_compute_ms: float


@dataclass(frozen=True)
class TrafficReport(Record):
    """Results of a traffic split on one server.

    Attributes:
        split: The split.
        variant_digest: Digest of the variant's weights, 64 hex digits.
        candidate_digest: Digest of the candidate's weights.
        elapsed_s: Seconds since the split started.
        variant_answers: Requests served by the variant.
        candidate_answers: Requests served by the candidate.
        comparison: Comparison of images that both computed; None without any.
        skipped: Images not compared because the server was busy.
        failed: Images on which only the candidate failed.
        ended: Reason why the server ended the split by itself; None while it is active.
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
    ended: str | None = None
