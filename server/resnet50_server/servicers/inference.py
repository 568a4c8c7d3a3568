"""Classify and embed: validate → admission → decode → batch → reply."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor

import numpy as np

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc, result_pb2

from ..admission import Admission
from ..batcher import Result
from ..decode import ImageLimits, check_image, decode
from ..errors import DeadlineUnreachable, InvalidRequest
from ..held import HeldVariant, HeldVariants
from .boundary import Context, answering, unimplemented

DEFAULT_TOP_K = 5


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """`InferenceService` of the contract.

    Args:
        variants: Those that can answer.
        admission: How much may be inside.
        decode_pool: Threads that decode.
        limits: What an image may weigh.
    """

    def __init__(
        self,
        variants: HeldVariants,
        admission: Admission,
        decode_pool: Executor,
        limits: ImageLimits,
    ) -> None:
        self._variants = variants
        self._admission = admission
        self._decode_pool = decode_pool
        self._limits = limits

    @answering
    async def Classify(
        self, request: inference_pb2.ClassifyRequest, context: Context
    ) -> inference_pb2.ClassifyResponse:
        """Classify one image; see the contract."""
        started = time.perf_counter()
        options = request.options
        variant = self._variants.find(options.variant)
        top_k = _top_k(options.top_k, variant)
        min_probability = _min_probability(options)
        result, timing = await self._infer(
            variant, request.image, context, started, top_k, options.include_embedding
        )
        labels = variant.definition.categories
        categories = [
            result_pb2.Category(index=index, label=labels[index], probability=probability)
            for index, probability in zip(
                result.indices.tolist(), result.probabilities.tolist(), strict=True
            )
            if probability >= min_probability
        ]
        classification = result_pb2.Classification(categories=categories)
        if result.embedding is not None:
            classification.embedding.CopyFrom(
                _embedding(result, variant, inference_pb2.EmbedOptions())
            )
        return inference_pb2.ClassifyResponse(
            classification=classification, variant=_reference(variant), timing=timing
        )

    @answering
    async def Embed(
        self, request: inference_pb2.EmbedRequest, context: Context
    ) -> inference_pb2.EmbedResponse:
        """Embed one image; see the contract."""
        started = time.perf_counter()
        variant = self._variants.find(request.options.variant)
        if request.options.type not in result_pb2.EmbeddingType.values():
            raise InvalidRequest(
                "options.type",
                f"is {request.options.type}, must be one of"
                f" {', '.join(result_pb2.EmbeddingType.keys())}",
            )
        result, timing = await self._infer(variant, request.image, context, started, 0, True)
        return inference_pb2.EmbedResponse(
            embedding=_embedding(result, variant, request.options),
            variant=_reference(variant),
            timing=timing,
        )

    async def ClassifyUpload(  # noqa: D102  the contract documents it
        self, request_iterator: AsyncIterator[inference_pb2.ClassifyUploadRequest], context: Context
    ) -> inference_pb2.ClassifyResponse:
        await unimplemented(context, "ClassifyUpload")

    async def EmbedUpload(  # noqa: D102  the contract documents it
        self, request_iterator: AsyncIterator[inference_pb2.EmbedUploadRequest], context: Context
    ) -> inference_pb2.EmbedResponse:
        await unimplemented(context, "EmbedUpload")

    async def ClassifyStream(  # noqa: D102  the contract documents it
        self, request_iterator: AsyncIterator[inference_pb2.ClassifyStreamRequest], context: Context
    ) -> AsyncIterator[inference_pb2.ClassifyStreamResponse]:
        await unimplemented(context, "ClassifyStream")
        yield  # makes it a generator, as a streaming method must be

    async def EmbedStream(  # noqa: D102  the contract documents it
        self, request_iterator: AsyncIterator[inference_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[inference_pb2.EmbedStreamResponse]:
        await unimplemented(context, "EmbedStream")
        yield  # makes it a generator, as a streaming method must be

    async def _infer(
        self,
        variant: HeldVariant,
        image: image_pb2.Image,
        context: Context,
        started: float,
        top_k: int,
        with_embedding: bool,
    ) -> tuple[Result, result_pb2.Timing]:
        """Take one image through admission, decoding and its batch."""
        check_image(image, self._limits)
        loop = asyncio.get_running_loop()
        remaining_s = context.time_remaining()
        # gRPC reports a call without a deadline as None, or as a time beyond any calendar.
        deadline = None if remaining_s is None or remaining_s > 1e8 else loop.time() + remaining_s
        with self._admission.admit(image.ByteSize()):
            pixels = await loop.run_in_executor(
                self._decode_pool, decode, image, variant.definition.transform, self._limits
            )
            decoded = time.perf_counter()
            if deadline is not None and loop.time() >= deadline:
                raise DeadlineUnreachable("the deadline passed while the image was decoded")
            result = await variant.scheduler.submit(
                variant.queue,
                pixels,
                top_k=top_k,
                with_embedding=with_embedding,
                deadline=deadline,
            )
        timing = result_pb2.Timing(
            decode_us=int((decoded - started) * 1e6),
            queue_us=int(result.queue_s * 1e6),
            compute_us=int(result.compute_s * 1e6),
            total_us=int((time.perf_counter() - started) * 1e6),
            batch_size=result.batch_size,
        )
        return result, timing


def _top_k(asked: int, variant: HeldVariant) -> int:
    count = len(variant.definition.categories)
    if asked > count:
        raise InvalidRequest(
            "options.top_k",
            f"is {asked}, variant {variant.definition.name} has {count} categories; ask for"
            f" 1 to {count}, or 0 for the default",
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


def _reference(variant: HeldVariant) -> result_pb2.VariantRef:
    return result_pb2.VariantRef(name=variant.definition.name, digest=variant.opened.digest)


def _embedding(
    result: Result, variant: HeldVariant, options: inference_pb2.EmbedOptions
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
