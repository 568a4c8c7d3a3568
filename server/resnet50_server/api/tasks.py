"""What a request wants to know of an image, checked; and the engine's result as its answer."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from resnet50.v1 import inference_pb2, result_pb2
from resnet50_server.batching.result import Result
from resnet50_server.errors import InvalidRequest
from resnet50_server.events import ImageEvent
from resnet50_server.inference.pipeline import InferenceTask
from resnet50_server.lifecycle.loaded_variant import LoadedVariant

DEFAULT_TOP_K = 5
# Each category costs the event loop about 1.5 us: ten thousand would hold up everybody.
MAX_TOP_K = 1000
_CACHE_USES = {
    "none": result_pb2.CACHE_USE_UNSPECIFIED,
    "hit": result_pb2.CACHE_USE_HIT,
    "shared": result_pb2.CACHE_USE_SHARED,
}


class ClassifyTask:
    """Which categories?

    Args:
        options: Of the request.
        variant: The weights that will answer.

    Attributes:
        variant: The same.
        reference: The same, for the reply.
        task: What the pipeline is to compute.

    Raises:
        InvalidRequest: An option is wrong.
    """

    def __init__(self, options: inference_pb2.ClassifyOptions, variant: LoadedVariant) -> None:
        self._options = options
        self.variant = variant
        self.reference = _reference(self.variant)
        self._with_embedding = options.include_embedding
        self.task = InferenceTask(variant, _top_k(options.top_k, variant), self._with_embedding)
        self._min_probability = _min_probability(options)

    def latest(self) -> ClassifyTask:
        """Return the same question to what has taken the variant's place, if anything has."""
        latest = self.variant.latest()
        return self if latest is self.variant else ClassifyTask(self._options, latest)

    def answer(self, result: Result) -> result_pb2.Classification:
        """Return what the image shows."""
        labels = self.variant.spec.categories
        classification = result_pb2.Classification()
        add = classification.categories.add  # in place: a message made before would be copied
        for index, probability in zip(
            result.indices.tolist(), result.probabilities.tolist(), strict=True
        ):
            if probability >= self._min_probability:
                add(index=index, label=labels[index], probability=probability)
        if self._with_embedding:  # a traffic split may have asked for one as well
            classification.embedding.CopyFrom(
                _embedding(result, self.variant, inference_pb2.EmbedOptions())
            )
        return classification


class EmbedTask:
    """Which vector?

    Args:
        options: Of the request.
        variant: The weights that will answer.

    Attributes:
        variant: The same.
        reference: The same, for the reply.
        task: What the pipeline is to compute.

    Raises:
        InvalidRequest: An option is wrong.
    """

    def __init__(self, options: inference_pb2.EmbedOptions, variant: LoadedVariant) -> None:
        self.variant = variant
        self.reference = _reference(self.variant)
        if options.type not in result_pb2.EmbeddingType.values():
            raise InvalidRequest(
                "options.type",
                f"is {options.type}, must be one of {', '.join(result_pb2.EmbeddingType.keys())}",
            )
        self._options = options
        self.task = InferenceTask(variant, top_k=0, with_embedding=True)

    def latest(self) -> EmbedTask:
        """Return the same question to what has taken the variant's place, if anything has."""
        latest = self.variant.latest()
        return self if latest is self.variant else EmbedTask(self._options, latest)

    def answer(self, result: Result) -> result_pb2.Embedding:
        """Return the image's vector."""
        return _embedding(result, self.variant, self._options)


Task: TypeAlias = ClassifyTask | EmbedTask


def _reference(variant: LoadedVariant) -> result_pb2.VariantRef:
    """Return which weights answered."""
    return result_pb2.VariantRef(name=variant.spec.name, digest=variant.built.digest)


def timing(image: ImageEvent) -> result_pb2.Timing:
    """Return where an image's time went."""
    return result_pb2.Timing(
        decode_us=int(image.decode_s * 1e6),
        queue_us=int(image.queue_s * 1e6),
        compute_us=int(image.compute_s * 1e6),
        total_us=int(image.total_s * 1e6),
        batch_size=image.batch_size,
        cache=_CACHE_USES[image.cache],
    )


def _top_k(asked: int, variant: LoadedVariant) -> int:
    count = len(variant.spec.categories)
    if asked > count:
        raise InvalidRequest(
            "options.top_k",
            f"is {asked}, variant {variant.spec.name} has {count} categories; ask for"
            f" 1 to {min(count, MAX_TOP_K)}, or 0 for the default",
        )
    if asked > MAX_TOP_K:
        raise InvalidRequest(
            "options.top_k",
            f"is {asked}, at most {MAX_TOP_K} categories are answered; ask for the first ones,"
            " or for the embedding",
        )
    return asked or min(DEFAULT_TOP_K, count)


def _min_probability(options: inference_pb2.ClassifyOptions) -> float:
    if not options.HasField("min_probability"):
        return -math.inf
    if not 0.0 <= options.min_probability <= 1.0:
        raise InvalidRequest(
            "options.min_probability", f"is {options.min_probability}, must be 0 to 1"
        )
    return options.min_probability


def _embedding(
    result: Result, variant: LoadedVariant, options: inference_pb2.EmbedOptions
) -> result_pb2.Embedding:
    assert result.embedding is not None  # asked for by the caller
    vector = result.embedding
    if options.l2_normalize:
        # A vector of zeros stays one: it has no direction to keep.
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    half = options.type == result_pb2.EMBEDDING_TYPE_FLOAT16
    return result_pb2.Embedding(
        values=vector.astype("<f2" if half else "<f4").tobytes(),
        type=result_pb2.EMBEDDING_TYPE_FLOAT16 if half else result_pb2.EMBEDDING_TYPE_FLOAT32,
        dimension=len(vector),
        space=variant.space,
        l2_normalized=options.l2_normalize,
    )
