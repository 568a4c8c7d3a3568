"""Active traffic splits: which variant computes a request, and their statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from random import Random

from resnet50_server.batching.result import Result
from resnet50_server.context import RequestContext
from resnet50_server.errors import NotNow, SplitNotFound
from resnet50_server.events import ImageEvent, ServerEvents
from resnet50_server.images.source import Source
from resnet50_server.inference.pipeline import InferenceTask
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.variants.spec import VariantSpec

from .comparison import SideStats, SplitStats
from .shadow import Compute, ShadowRequest, ShadowWorker, output_of
from .split import Split, category_difference, obstacle

log = logging.getLogger(__name__)

OK = "OK"


class ActiveSplit:
    """A traffic split with its statistics.

    Args:
        split: Its settings.
        variant: The variant.
        candidate: The candidate.
        variants: The registry, for both after they have been replaced.
        shadows: Computes images on the candidate as well.

    Attributes:
        split: Its settings.
        shadows: Computes images on the candidate as well.
        ended: Why the server has ended it; "" while it is active.
    """

    def __init__(
        self,
        split: Split,
        variant: LoadedVariant,
        candidate: LoadedVariant,
        variants: VariantRegistry,
        shadows: ShadowWorker,
    ) -> None:
        self.split = split
        self.shadows = shadows
        self.ended = ""
        self._variants = variants
        self._specs = variant.spec, candidate.spec
        self._stats = SplitStats(variant.built.digest, candidate.built.digest)

    def end(self, reason: str) -> None:
        """Stop comparing; the statistics stay.

        Args:
            reason: Why.
        """
        self.ended = reason
        self._stats.stop()
        self.shadows.close()

    @property
    def variant(self) -> LoadedVariant | None:
        """The variant, if it is loaded."""
        return self._variants.loaded_variant(self._specs[0])

    @property
    def candidate(self) -> LoadedVariant | None:
        """The candidate, if it is loaded."""
        return self._variants.loaded_variant(self._specs[1])

    @property
    def stats(self) -> SplitStats:
        """The statistics; they restart when the weights of one of the two change."""
        if self.ended:
            return self._stats
        variant, candidate = self.variant, self.candidate
        if variant is not None and candidate is not None:
            digests = variant.built.digest, candidate.built.digest
            if digests != (self._stats.variant_digest, self._stats.candidate_digest):
                self._stats = SplitStats(*digests)
        return self._stats

    def share(self, name: str, stats: SplitStats) -> SideStats | None:
        """Return the side that a variant's results count for; None for neither."""
        if name == self.split.variant:
            return stats.variant_answers
        # Neither: the stream was routed by an earlier split.
        return stats.candidate_answers if name == self.split.candidate else None


class TrafficRouter(ServerEvents):
    """All traffic splits of a server, at most one per variant. Event loop only.

    As a listener it counts failed calls. A split ends by itself if its candidate becomes unhealthy,
    or is replaced by weights with which it could not have been set; its last report is kept until
    it is deleted or replaced.

    Args:
        variants: The registry.
        compute: Computes an image for which no client waits.
        random: Selects the images that a candidate computes as well.
    """

    def __init__(
        self, variants: VariantRegistry, compute: Compute, random: Random | None = None
    ) -> None:
        self._variants = variants
        self._compute = compute
        self._random = random or Random()
        self._splits: dict[str, ActiveSplit] = {}  # by the names of their variants
        variants.on_health_change(self._on_health)
        variants.on_retired(self._on_retired)

    @property
    def splits(self) -> list[ActiveSplit]:
        """All, in the order in which they were set, including ended ones."""
        return list(self._splits.values())

    def set(self, split: Split) -> ActiveSplit:
        """Set a split, replacing the one of its variant.

        The statistics continue if the variants are the same.

        Raises:
            NotNow: One of the two is not loaded, or has no categories.
        """
        active = self._splits.get(split.variant)
        if active is not None and active.split == split and not active.ended:
            return active
        variant = self._loaded("split.variant", split.variant)
        candidate = self._loaded("split.candidate", split.candidate)
        if (problem := candidate.queue.health.problem) is not None:
            raise NotNow(f"split.candidate: {split.candidate} is out of service: {problem}")
        if (found := obstacle(split, variant.spec, candidate.spec)) is not None:
            field, reason = found
            raise NotNow(f"split.{field}: {reason}")
        if active is not None:
            self.delete(split.variant)
        active = self._splits[split.variant] = ActiveSplit(
            split, variant, candidate, self._variants, ShadowWorker(self._compute, split.candidate)
        )
        return active

    def delete(self, variant: str) -> ActiveSplit:
        """End a variant's split.

        Raises:
            SplitNotFound: It has none.
        """
        active = self._splits.pop(variant, None)
        if active is None:
            raise SplitNotFound("variant", variant, list(self._splits))
        active.shadows.close()
        return active

    def splits_using(self, name: str) -> list[str]:
        """Return the variants whose splits refer to a variant on either side."""
        return [
            active.split.variant
            for active in self._splits.values()
            if name in (active.split.variant, active.split.candidate) and not active.ended
        ]

    def resolve(
        self,
        call: RequestContext,
        variant: LoadedVariant,
        *,
        with_embedding: bool,
        transform_digests: Iterable[str] = (),
    ) -> LoadedVariant:
        """Return the variant that computes a request: the requested one, or a candidate.

        Args:
            call: The request; its `asked` and `variant` are set.
            variant: The requested variant.
            with_embedding: Whether it asks for embeddings. Embeddings of two variants must not be
                mixed in one index unnoticed, so the candidate computes them only if the split
                allows it.
            transform_digests: Of the transforms that its images were preprocessed by; "" for none.
                The candidate computes them only if its transform is the same.

        Raises:
            VariantUnhealthy: The variant is out of service.
        """
        call.asked = variant.spec.name
        if self._splits and (active := self._active(call.asked)) is not None:
            variant = self._choose(active, variant, call, with_embedding, transform_digests)
        call.variant = variant.spec.name
        variant.require_health()
        return variant

    def requested_variant(self, call: RequestContext) -> LoadedVariant:
        """Return the variant that a request named, whether or not a candidate computes it.

        Raises:
            VariantNotFound: It has been unloaded.
            VariantLoading: It is not loaded.
        """
        return self._variants.find(call.asked)

    def instrument(
        self, task: InferenceTask, call: RequestContext, source: Source
    ) -> InferenceTask:
        """Return a task whose result a split counts, and compares if the image is selected.

        Args:
            task: The task of the request.
            call: The request.
            source: The image.
        """
        if not self._splits or (active := self._active(call.asked)) is None:
            return task
        name, stats = task.variant.spec.name, active.stats
        if (share := active.share(name, stats)) is None:
            return task
        candidate = active.candidate
        if (
            candidate is None
            or name == candidate.spec.name
            or self._random.random() * 100 >= active.split.shadow_percent
        ):
            return task._replace(on_result=partial(_count, share))
        if not active.shadows.has_capacity(source):
            stats.skipped += 1
            return task._replace(on_result=partial(_count, share))

        def compare(result: Result, image: ImageEvent) -> None:
            _count(share, result, image)
            if result.cache != "none":
                return  # the variant did not take the time that is to be compared
            output = output_of(result, task.variant)
            active.shadows.add(ShadowRequest(source, output, candidate, stats, task.background))

        return task._replace(top_k=max(1, task.top_k), with_embedding=True, on_result=compare)

    def call_ended(self, call: RequestContext, code: str, error: Exception | None) -> None:
        """Count a failed request for one image, or one that fails because an image of it does."""
        if code != OK and (call.stream is None or call.image_failed):
            self._count_failed(call)

    def image_refused(self, call: RequestContext, error: Exception) -> None:
        """Count a failed frame, or a failed image of a batch."""
        self._count_failed(call)

    def close(self) -> None:
        """Stop computing shadow requests."""
        for active in self._splits.values():
            active.shadows.close()

    def _count_failed(self, call: RequestContext) -> None:
        if (active := self._splits.get(call.asked)) is None:
            return
        if active.ended and call.variant != active.split.candidate:
            return  # requests that the candidate had started still count
        if (share := active.share(call.variant, active.stats)) is not None:
            share.failed += 1

    def _choose(
        self,
        active: ActiveSplit,
        variant: LoadedVariant,
        call: RequestContext,
        with_embedding: bool,
        transform_digests: Iterable[str],
    ) -> LoadedVariant:
        """Return one of the two variants of a split; arguments as for `resolve`."""
        if with_embedding and not active.split.canary_embeddings:
            return variant
        canary = active.split.is_canary(call.key or call.caller.name)
        candidate = active.candidate if canary else None
        if candidate is None:
            return variant
        suitable = ("", candidate.spec.transform.digest)
        return candidate if all(one in suitable for one in transform_digests) else variant

    def _active(self, variant: str) -> ActiveSplit | None:
        """Return a variant's split unless it has ended."""
        active = self._splits.get(variant)
        return None if active is None or active.ended else active

    def _on_health(self, variant: LoadedVariant) -> None:
        """End the splits whose candidate has become unhealthy."""
        if (problem := variant.queue.health.problem) is None or variant.retired:
            return
        for active in self._splits.values():
            if active.candidate is variant:
                self._end(
                    active, f"candidate {active.split.candidate} is out of service: {problem}"
                )

    def _on_retired(self, replaced: LoadedVariant) -> None:
        """End the splits that do not suit the weights that have replaced a variant's."""
        if (successor := replaced.replaced_by) is None:
            # An active split refers to no unloaded variant, so this one has ended.
            self._splits.pop(replaced.spec.name, None)
            return
        for active in self._splits.values():
            variant, candidate = active.variant, active.candidate
            if variant is None or candidate is None or successor not in (variant, candidate):
                continue
            difference = category_difference(variant.spec, candidate.spec)
            # Without categories there is nothing to compare either.
            if difference and (active.split.canary_percent or not successor.spec.categories):
                self._end(active, difference)

    def _end(self, active: ActiveSplit, reason: str) -> None:
        if not active.ended:
            active.end(reason)
            log.error(
                "the traffic split of %s has ended, and %s answers all of its requests again: %s",
                active.split.variant,
                active.split.variant,
                reason,
            )

    def _loaded(self, field: str, name: str) -> LoadedVariant:
        spec: VariantSpec = self._variants.resolve(name, field)
        loaded = self._variants.loaded_variant(spec)
        if loaded is None:
            raise NotNow(f"{field}: {name} is not loaded yet")
        return loaded


def _count(share: SideStats, result: Result, image: ImageEvent) -> None:
    share.answered += 1
    share.total_s.add(image.total_s)
