"""Traffic splits as messages."""

from __future__ import annotations

from resnet50.v1 import variant_pb2
from resnet50_server.errors import InvalidRequest
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.rollout.router import Trial
from resnet50_server.rollout.split import Comparison, Share, Split


def split_of(message: variant_pb2.TrafficSplit, variants: VariantRegistry) -> Split:
    """Return the split that a message asks for, with the names of its variants.

    Raises:
        InvalidRequest: A field is wrong.
        VariantNotFound: There is no such variant.
    """
    for field in ("variant", "candidate"):
        if not getattr(message, field):
            raise InvalidRequest(f"split.{field}", "is empty: name a loaded variant")
    return Split(
        variants.resolve(message.variant, "split.variant").name,
        variants.resolve(message.candidate, "split.candidate").name,
        message.canary_percent,
        message.shadow_percent,
        message.canary_embeddings,
    )


def report_of(trial: Trial) -> variant_pb2.TrafficReport:
    """Return what came of a split."""
    split, tally = trial.split, trial.tally
    report = variant_pb2.TrafficReport(
        split=variant_pb2.TrafficSplit(
            variant=split.variant,
            candidate=split.candidate,
            canary_percent=split.canary_percent,
            shadow_percent=split.shadow_percent,
            canary_embeddings=split.canary_embeddings,
        ),
        variant_digest=tally.variant_digest,
        candidate_digest=tally.candidate_digest,
        elapsed_s=tally.elapsed_s,
        variant_answers=_share(tally.variant_answers),
        candidate_answers=_share(tally.candidate_answers),
        skipped=tally.skipped,
        failed=tally.failed,
        ended=trial.ended,
    )
    if tally.comparison.images:
        report.comparison.CopyFrom(_comparison(tally.comparison))
    return report


def _share(share: Share) -> variant_pb2.TrafficShare:
    return variant_pb2.TrafficShare(
        answered=share.answered,
        failed=share.failed,
        p50_ms=share.total_s.quantile(0.5) * 1e3,
        p99_ms=share.total_s.quantile(0.99) * 1e3,
    )


def _comparison(comparison: Comparison) -> variant_pb2.Comparison:
    return variant_pb2.Comparison(
        images=comparison.images,
        top_1_agreement=comparison.agreed / comparison.images,
        embedding_cosine=comparison.cosines / comparison.images,
        min_embedding_cosine=comparison.min_cosine,
        variant_compute_ms=comparison.variant_s.quantile(0.5) * 1e3,
        candidate_compute_ms=comparison.candidate_s.quantile(0.5) * 1e3,
    )
