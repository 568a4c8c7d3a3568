"""The traffic splits that hold: who answers a call, and what came of it."""

from __future__ import annotations

import logging
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

from .shadow import Compute, Shadow, Shadows, seen
from .split import Share, Split, Tally

log = logging.getLogger(__name__)

OK = "OK"


class Trial:
    """A split that holds, and what was counted since.

    Args:
        split: Which one.
        variant: The variant.
        candidate: The candidate.
        variants: Where both are found, whatever weights they have by then.
        shadows: The images that the candidate computes as well.

    Attributes:
        split: The same.
        shadows: The same.
        ended: Why the server has ended it; "" while it holds.
    """

    def __init__(
        self,
        split: Split,
        variant: LoadedVariant,
        candidate: LoadedVariant,
        variants: VariantRegistry,
        shadows: Shadows,
    ) -> None:
        self.split = split
        self.shadows = shadows
        self.ended = ""
        self._variants = variants
        self._specs = variant.spec, candidate.spec
        self._tally = Tally(variant.built.digest, candidate.built.digest)

    def end(self, reason: str) -> None:
        """Compare no more; what was counted stays as it is.

        Args:
            reason: Why.
        """
        self.ended = reason
        self._tally.stop()
        self.shadows.close()

    @property
    def variant(self) -> LoadedVariant | None:
        """The variant, if it answers."""
        return self._variants.loaded_variant(self._specs[0])

    @property
    def candidate(self) -> LoadedVariant | None:
        """The candidate, if it answers."""
        return self._variants.loaded_variant(self._specs[1])

    @property
    def tally(self) -> Tally:
        """What was counted; begins anew once one of the two has other weights."""
        if self.ended:
            return self._tally
        variant, candidate = self.variant, self.candidate
        if variant is not None and candidate is not None:
            digests = variant.built.digest, candidate.built.digest
            if digests != (self._tally.variant_digest, self._tally.candidate_digest):
                self._tally = Tally(*digests)
        return self._tally

    def share(self, name: str, tally: Tally) -> Share | None:
        """Return the side that a variant's answers count on; None if they do not."""
        if name == self.split.variant:
            return tally.variant_answers
        # Neither: the stream was routed by an earlier split.
        return tally.candidate_answers if name == self.split.candidate else None


class Traffic(ServerEvents):
    """All traffic splits of a server, one a variant. Event loop only.

    As an observer it counts the calls that fail. A split whose candidate goes out of service, or is
    replaced by weights that it could not be set with, ends by itself; its last report is kept until
    it is deleted or its variant gets another one.

    Args:
        variants: Those that can answer.
        compute: Computes an image that nobody waits for.
        random: Says which images a candidate computes as well.
    """

    def __init__(
        self, variants: VariantRegistry, compute: Compute, random: Random | None = None
    ) -> None:
        self._variants = variants
        self._compute = compute
        self._random = random or Random()
        self._trials: dict[str, Trial] = {}  # by the names of their variants
        variants.on_health_change(self._on_health)
        variants.on_retired(self._on_retired)

    @property
    def trials(self) -> list[Trial]:
        """All, in the order in which they were set, with those that have ended by themselves."""
        return list(self._trials.values())

    def set(self, split: Split) -> Trial:
        """Let a split hold, in the place of the one that its variant has.

        What was counted goes on if it is the same split.

        Raises:
            NotNow: One of the two is not loaded.
        """
        trial = self._trials.get(split.variant)
        if trial is not None and trial.split == split and not trial.ended:
            return trial
        variant = self._loaded("split.variant", split.variant)
        candidate = self._loaded("split.candidate", split.candidate)
        if (problem := candidate.queue.health.problem) is not None:
            raise NotNow(f"split.candidate: {split.candidate} is out of service: {problem}")
        if split.canary_percent and (difference := _difference(variant, candidate)):
            raise NotNow(
                f"split.canary_percent: {difference}; its answers would mean something else to"
                " callers who asked for the variant: compare such weights with shadow_percent only"
            )
        if trial is not None:
            self.delete(split.variant)
        trial = self._trials[split.variant] = Trial(
            split, variant, candidate, self._variants, Shadows(self._compute, split.candidate)
        )
        return trial

    def delete(self, variant: str) -> Trial:
        """End a variant's split.

        Raises:
            SplitNotFound: It has none.
        """
        trial = self._trials.pop(variant, None)
        if trial is None:
            raise SplitNotFound("variant", variant, list(self._trials))
        trial.shadows.close()
        return trial

    def naming(self, name: str) -> list[str]:
        """Return the variants whose splits name a variant, as the one or the other."""
        return [
            trial.split.variant
            for trial in self._trials.values()
            if name in (trial.split.variant, trial.split.candidate) and not trial.ended
        ]

    def route(
        self, call: RequestContext, variant: LoadedVariant, *, with_embedding: bool
    ) -> LoadedVariant:
        """Return what answers a call.

        Args:
            call: Which one.
            variant: The one that it asks for.
            with_embedding: Whether it asks for embeddings. Vectors of two weights must not get
                into one index unnoticed, so the candidate answers them only if the split says so.
        """
        call.asked = name = variant.spec.name
        if (trial := self._holding(name)) is None:
            return variant
        if with_embedding and not trial.split.canary_embeddings:
            return variant
        canary = trial.split.is_canary(call.key or call.caller.name)
        return (trial.candidate if canary else None) or variant

    def watch(self, task: InferenceTask, call: RequestContext, source: Source) -> InferenceTask:
        """Return what is to be done with an image if a split is to learn of it.

        Args:
            task: What would be done without.
            call: The RPC that it belongs to.
            source: The image.
        """
        if not self._trials or (trial := self._holding(call.asked)) is None:
            return task
        name, tally = task.variant.spec.name, trial.tally
        if (share := trial.share(name, tally)) is None:
            return task
        candidate = trial.candidate
        if (
            candidate is None
            or name == candidate.spec.name
            or self._random.random() * 100 >= trial.split.shadow_percent
        ):
            return task._replace(on_result=partial(_count, share))
        if not trial.shadows.has_room(source):
            tally.skipped += 1
            return task._replace(on_result=partial(_count, share))

        def compare(result: Result, image: ImageEvent) -> None:
            _count(share, result, image)
            if result.cache != "none":
                return  # the variant did not take the time that is to be compared
            trial.shadows.add(Shadow(source, seen(result, task.variant), candidate, tally))

        return task._replace(top_k=max(1, task.top_k), with_embedding=True, on_result=compare)

    def call_ended(self, call: RequestContext, code: str, error: Exception | None) -> None:
        """Count a call with one image that was not answered."""
        if code != OK and call.stream is None:
            self._count_failed(call)

    def frame_refused(self, call: RequestContext, error: Exception) -> None:
        """Count a frame."""
        self._count_failed(call)

    def close(self) -> None:
        """Compute no more shadows."""
        for trial in self._trials.values():
            trial.shadows.close()

    def _count_failed(self, call: RequestContext) -> None:
        if (trial := self._trials.get(call.asked)) is None:
            return
        if trial.ended and call.variant != trial.split.candidate:
            return  # what the candidate had taken by then still counts
        if (share := trial.share(call.variant, trial.tally)) is not None:
            share.failed += 1

    def _holding(self, variant: str) -> Trial | None:
        """Return a variant's split, unless it has ended."""
        trial = self._trials.get(variant)
        return None if trial is None or trial.ended else trial

    def _on_health(self, variant: LoadedVariant) -> None:
        """End the splits whose candidate has gone out of service."""
        if (problem := variant.queue.health.problem) is None or variant.retired:
            return
        for trial in self._trials.values():
            if trial.candidate is variant:
                self._end(trial, f"candidate {trial.split.candidate} is out of service: {problem}")

    def _on_retired(self, replaced: LoadedVariant) -> None:
        """End the canaries that the weights which came in a variant's place do not suit."""
        if (successor := replaced.replaced_by) is None:
            # Those that hold name no variant that is unloaded.
            self._trials.pop(replaced.spec.name, None)
            return
        for trial in self._trials.values():
            variant, candidate = trial.variant, trial.candidate
            if (
                trial.split.canary_percent
                and variant is not None
                and candidate is not None
                and successor in (variant, candidate)
                and (difference := _difference(variant, candidate))
            ):
                self._end(trial, difference)

    def _end(self, trial: Trial, reason: str) -> None:
        if not trial.ended:
            trial.end(reason)
            log.error(
                "the traffic split of %s has ended, and %s answers all of its requests again: %s",
                trial.split.variant,
                trial.split.variant,
                reason,
            )

    def _loaded(self, field: str, name: str) -> LoadedVariant:
        spec: VariantSpec = self._variants.resolve(name, field)
        held = self._variants.loaded_variant(spec)
        if held is None:
            raise NotNow(f"{field}: {name} is not loaded yet")
        return held


def _count(share: Share, result: Result, image: ImageEvent) -> None:
    share.answered += 1
    share.total_s.add(image.total_s)


def _difference(variant: LoadedVariant, candidate: LoadedVariant) -> str | None:
    """Say how the categories of two variants differ; None if they are the same, in one order."""
    ours, theirs = variant.spec.categories, candidate.spec.categories
    names = f"{candidate.spec.name} has other categories than {variant.spec.name}"
    if len(ours) != len(theirs):
        return f"{names}: {len(theirs)} instead of {len(ours)}"
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            return f"{names}: number {index} is {other[:64]!r} instead of {one[:64]!r}"
    return None
