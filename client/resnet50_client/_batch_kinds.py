"""Calls of bulk runs, with one image and with several."""

from __future__ import annotations

from resnet50.v1 import inference_pb2

from . import _codec, _unary
from ._bulk_images import BatchKind
from ._types.results import Classification, Embedding


def classify_batches(
    options: inference_pb2.ClassifyOptions, pixel_format: str | None
) -> BatchKind[Classification]:
    """Return the calls of `classify_many`."""
    return BatchKind(
        batch=lambda contents: _unary.batch_call(
            inference_pb2.ClassifyBatchRequest(options=options), contents, _codec.classification
        ),
        single=lambda content, source: _unary.classify_content_call(content, options, source),
        pixel_format=pixel_format,
    )


def embed_batches(
    options: inference_pb2.EmbedOptions, pixel_format: str | None
) -> BatchKind[Embedding]:
    """Return the calls of `embed_many`."""
    return BatchKind(
        batch=lambda contents: _unary.batch_call(
            inference_pb2.EmbedBatchRequest(options=options), contents, _codec.embedding
        ),
        single=lambda content, source: _unary.embed_content_call(content, options, source),
        pixel_format=pixel_format,
    )
