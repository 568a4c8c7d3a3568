"""Self-tests of variants out of service; a variant that passes is in service again."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet50_server.batching.result import Result
from resnet50_server.context import RequestContext
from resnet50_server.engines.base import Engine
from resnet50_server.engines.reference_check import TOLERANCES, TOP_K, fixed_image
from resnet50_server.errors import ServingError
from resnet50_server.variants.spec import VariantSpec

from .loaded_variant import LoadedVariant
from .registry import VariantRegistry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """An engine's output for the fixed image, from when its variant was loaded and checked.

    Attributes:
        image: uint8 [height, width, 3], RGB.
        probabilities: float32 [k], falling.
        embedding: float32 [D].
    """

    image: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]

    @classmethod
    def compute(cls, engine: Engine, spec: VariantSpec) -> Reference:
        """Compute the reference of a variant; blocks, so it runs on an engine thread."""
        image = fixed_image(spec.transform.input_size)
        output = engine.run([image], min(TOP_K, len(spec.categories)), True)
        assert output.embeddings is not None  # asked for
        return cls(image, output.probabilities[0].copy(), output.embeddings[0].copy())

    def difference(self, result: Result, precision: str) -> str | None:
        """Describe how a result for the same image differs; None if it is equal within rounding.

        Args:
            result: With as many categories, and the embedding.
            precision: The engine's precision, which has its own tolerance.
        """
        assert result.embedding is not None  # asked for
        tolerance = TOLERANCES[precision]
        off = float(np.abs(result.probabilities - self.probabilities).max(initial=0.0))
        lengths = float(np.linalg.norm(result.embedding) * np.linalg.norm(self.embedding))
        cosine = float(result.embedding @ self.embedding) / lengths if lengths else 1.0
        if off <= tolerance.probability and cosine >= tolerance.cosine:
            return None
        return f"a probability is off by {off:.2e}, and the embedding's cosine is {cosine:.6f}"


class SelfTests:
    """Tests each variant out of service, with growing pauses, until it passes. Event loop only.

    Args:
        variants: The variants of the server.
    """

    def __init__(self, variants: VariantRegistry) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        variants.on_health_change(self._on_health)

    def __len__(self) -> int:
        """Return how many variants are out of service and tested."""
        return len(self._tasks)

    def close(self) -> None:
        """Stop testing."""
        for task in self._tasks:
            task.cancel()

    def _on_health(self, variant: LoadedVariant) -> None:
        if variant.queue.health.problem is None or variant.reference is None:
            return
        # In a context of its own: its log records do not belong to the request that failed.
        task = Context().run(
            asyncio.create_task,
            self._test_until_passed(variant, variant.reference),
            name=f"self-test of variant {variant.spec.name}",
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _test_until_passed(self, variant: LoadedVariant, reference: Reference) -> None:
        health = variant.queue.health
        while True:
            await asyncio.sleep(health.retest_s)
            if variant.retired:
                return
            problem = await self_test(variant, reference)
            if problem is None:
                health.recover()
                return
            health.on_test_failed()
            log.error(
                "variant %s failed its self-test and stays out of service: %s; the next test is in"
                " %g s",
                variant.spec.name,
                problem,
                health.retest_s,
            )


async def self_test(variant: LoadedVariant, reference: Reference) -> str | None:
    """Compute the fixed image again; return what is wrong with the result, None if nothing is."""
    try:
        result = await variant.scheduler.submit(
            variant.queue,
            reference.image,
            top_k=len(reference.probabilities),
            with_embedding=True,
            context=RequestContext("SelfTest", "", (), bulk=True, shadow=True),
        )
        return reference.difference(result, variant.built.precision)
    except ServingError as error:  # the scheduler has logged the engine's error
        return str(error)
    except Exception as error:
        log.exception("the self-test of variant %s raised", variant.spec.name)
        return repr(error)
