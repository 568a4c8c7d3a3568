"""Tasks: a request's checked options, and the response made of the engine's result."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeAlias

from resnet50.v1 import inference_pb2, result_pb2
from resnet50_server.batching.result import Result, unit_length
from resnet50_server.errors import InvalidRequest, NoClassificationHead
from resnet50_server.events import ImageEvent
from resnet50_server.images.background import Background, parse_background
from resnet50_server.inference.pipeline import InferenceTask
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.variants.spec import EMBEDDING_DIMENSION

from .status import to_status

DEFAULT_TOP_K = 5
# Each category costs the event loop about 1.5 us: ten thousand would delay all other requests.
MAX_TOP_K = 1000
# Images x top_k of a batch call.
MAX_BATCH_CATEGORIES = 20_000
# Of a result as a message: a category without its label, an embedding in float32, the rest.
CATEGORY_BYTES, EMBEDDING_BYTES, RESULT_BYTES = 24, 4 * EMBEDDING_DIMENSION + 64, 128
_CACHE_USES = {
    "none": result_pb2.CACHE_USE_UNSPECIFIED,
    "hit": result_pb2.CACHE_USE_HIT,
    "shared": result_pb2.CACHE_USE_SHARED,
}
Options: TypeAlias = Any  # ClassifyOptions or EmbedOptions


class Task(ABC):
    """A request's checked options for one variant.

    Args:
        options: From the request.
        variant: The variant that computes it.
        inference: The outputs that the pipeline computes.

    Attributes:
        Response: The message that answers a request.
        FrameResponse: The message that answers a frame.
        BatchResponse: The message that answers several images.
        field: The field of each that holds the result.
    """

    Response: ClassVar[type[Any]]
    FrameResponse: ClassVar[type[Any]]
    BatchResponse: ClassVar[type[Any]]
    field: ClassVar[str]

    def __init__(self, options: Options, variant: LoadedVariant, inference: InferenceTask) -> None:
        self.options = options
        self.variant = variant
        self.inference = inference
        self._reference = result_pb2.VariantRef(name=variant.spec.name, digest=variant.built.digest)

    @abstractmethod
    def fill(self, message: Any, result: Result) -> None:
        """Write a result into an empty message of its kind."""

    def response(self, result: Result, image: ImageEvent) -> Any:
        """Return the response to a request about one image."""
        response = self.Response()
        response.variant.CopyFrom(self._reference)
        self.fill_outcome(response, result, image)
        return response

    def frame_response(self, frame_id: int, result: Result, image: ImageEvent) -> Any:
        """Return the response to a frame."""
        response = self.FrameResponse(frame_id=frame_id)
        response.variant.CopyFrom(self._reference)
        self.fill_outcome(response, result, image)
        return response

    def batch_response(self, images: int) -> Any:
        """Return the response to several images, without their results.

        Args:
            images: How many there are.

        Raises:
            InvalidRequest: The results would have too many categories.
        """
        if (categories := images * self.inference.top_k) > MAX_BATCH_CATEGORIES:
            raise InvalidRequest(
                "options.top_k",
                f"is {self.inference.top_k} for {images} images, {categories} categories; a call is"
                f" answered with at most {MAX_BATCH_CATEGORIES}: send fewer images a call",
            )
        response = self.BatchResponse()
        response.variant.CopyFrom(self._reference)
        return response

    def fill_outcome(self, outcome: Any, result: Result, image: ImageEvent) -> None:
        """Write a result, and where its time went, into an empty message that has both."""
        timing = outcome.timing
        timing.decode_us = int(image.decode_s * 1e6)
        timing.queue_us = int(image.queue_s * 1e6)
        timing.compute_us = int(image.compute_s * 1e6)
        timing.total_us = int(image.total_s * 1e6)
        timing.batch_size = image.batch_size
        timing.cache = _CACHE_USES[image.cache]
        if result.warnings:
            outcome.image_warnings.extend(result.warnings)
        message = getattr(outcome, self.field)
        message.SetInParent()  # it may stay empty
        self.fill(message, result)

    def fill_error(self, outcome: Any, error: Exception, request_id: str) -> None:
        """Write an image's error into an empty message that has one."""
        outcome.error.CopyFrom(to_status(error, request_id))

    @property
    def result_bytes(self) -> int:
        """The size of one result as a message, at most."""
        top_k, spec = self.inference.top_k, self.variant.spec
        labels = (spec.longest_label_bytes + CATEGORY_BYTES) * top_k
        return labels + EMBEDDING_BYTES * self.inference.with_embedding + RESULT_BYTES

    def rebind(self, variant: LoadedVariant | None = None) -> Task:
        """Return the task for another variant.

        Args:
            variant: The other variant; None for the one that has replaced this one's, if any.

        Raises:
            InvalidRequest: The options do not suit the new variant.
            NoClassificationHead: The new variant has none, and the task classifies.
        """
        latest = (variant or self.variant).latest()
        return self if latest is self.variant else type(self)(self.options, latest)  # type: ignore[call-arg]


class ClassifyTask(Task):
    """Compute the most probable categories, and the embedding if asked for.

    Args:
        options: From the request.
        variant: The variant that computes it.

    Raises:
        InvalidRequest: An option is wrong.
        NoClassificationHead: The variant computes embeddings only.
    """

    Response = inference_pb2.ClassifyResponse
    FrameResponse = inference_pb2.ClassifyStreamResponse
    BatchResponse = inference_pb2.ClassifyBatchResponse
    field = "classification"

    def __init__(self, options: inference_pb2.ClassifyOptions, variant: LoadedVariant) -> None:
        if not variant.spec.categories:
            raise NoClassificationHead(variant.spec.name)
        inference = InferenceTask(
            variant,
            _top_k(options.top_k, variant),
            options.include_embedding,
            background=_background(options),
        )
        super().__init__(options, variant, inference)
        self._min_probability = _min_probability(options)
        # A minimum in the request overrides the variant's thresholds.
        self._thresholds = () if options.HasField("min_probability") else variant.spec.thresholds

    def fill(self, message: result_pb2.Classification, result: Result) -> None:
        """Write the categories, and the embedding if asked for."""
        labels, thresholds = self.variant.spec.categories, self._thresholds
        least = self._min_probability
        add = message.categories.add  # in place: a message made before would be copied
        for index, probability in zip(
            result.indices.tolist(), result.probabilities.tolist(), strict=True
        ):
            if thresholds:
                least = thresholds[index]
            if probability >= least:
                add(index=index, label=labels[index], probability=probability)
        if self.inference.with_embedding:
            _fill_embedding(message.embedding, result, self.variant, inference_pb2.EmbedOptions())


class EmbedTask(Task):
    """Compute the embedding.

    Args:
        options: From the request.
        variant: The variant that computes it.

    Raises:
        InvalidRequest: An option is wrong.
    """

    Response = inference_pb2.EmbedResponse
    FrameResponse = inference_pb2.EmbedStreamResponse
    BatchResponse = inference_pb2.EmbedBatchResponse
    field = "embedding"

    def __init__(self, options: inference_pb2.EmbedOptions, variant: LoadedVariant) -> None:
        if options.type not in result_pb2.EmbeddingType.values():
            raise InvalidRequest(
                "options.type",
                f"is {options.type}, must be one of {', '.join(result_pb2.EmbeddingType.keys())}",
            )
        inference = InferenceTask(
            variant, top_k=0, with_embedding=True, background=_background(options)
        )
        super().__init__(options, variant, inference)

    def fill(self, message: result_pb2.Embedding, result: Result) -> None:
        """Write the embedding."""
        _fill_embedding(message, result, self.variant, self.options)


def wants_embedding(options: Options) -> bool:
    """Return whether options ask for the embedding."""
    return isinstance(options, inference_pb2.EmbedOptions) or bool(options.include_embedding)


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


def _background(options: Options) -> Background | None:
    if not options.background:
        return None
    try:
        return parse_background(options.background)
    except ValueError as error:
        raise InvalidRequest("options.background", str(error)) from error


def _fill_embedding(
    message: result_pb2.Embedding,
    result: Result,
    variant: LoadedVariant,
    options: inference_pb2.EmbedOptions,
) -> None:
    assert result.embedding is not None  # asked for by the client
    vector = result.embedding
    if options.l2_normalize:
        vector = unit_length(vector)
    half = options.type == result_pb2.EMBEDDING_TYPE_FLOAT16
    message.values = vector.astype("<f2" if half else "<f4").tobytes()
    message.type = result_pb2.EMBEDDING_TYPE_FLOAT16 if half else result_pb2.EMBEDDING_TYPE_FLOAT32
    message.dimension = len(vector)
    message.space = variant.space
    message.l2_normalized = options.l2_normalize
