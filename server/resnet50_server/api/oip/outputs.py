"""Outputs of a request: which are wanted, and the tensors that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet50.oip.messages import message_class
from resnet50_server.batching.result import Result
from resnet50_server.errors import InvalidRequest, NoClassificationHead
from resnet50_server.events import ImageEvent
from resnet50_server.images.source import ImageWarning
from resnet50_server.inference.pipeline import InferenceTask
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.variants.spec import EMBEDDING_DIMENSION, VariantSpec

PROBABILITIES, EMBEDDING = "PROBABILITIES", "EMBEDDING"
VERSION = "1"
# Labels of a response: each is a Python string, and takes the event loop about 1 us.
MAX_LABELS = 20_000
_LABEL_BYTES = 24

ModelInferResponse = message_class("ModelInferResponse")


@dataclass(frozen=True)
class Output:
    """A tensor that a request asks for.

    Attributes:
        name: "PROBABILITIES" or "EMBEDDING".
        top_k: Of the classification extension: so many labels instead of probabilities; 0 for
            none.
    """

    name: str
    top_k: int = 0


def parse_outputs(request: Any, spec: VariantSpec, images: int) -> list[Output]:
    """Return the outputs of a request: those that it names, or all that the variant has.

    Args:
        request: A ModelInferRequest.
        spec: The variant's.
        images: The number of images.

    Raises:
        InvalidRequest: An output is unknown, named twice, or has a parameter that is wrong.
        NoClassificationHead: The variant has no probabilities.
    """
    names = [PROBABILITIES, EMBEDDING] if spec.categories else [EMBEDDING]
    if not request.outputs:
        return [Output(name) for name in names]
    outputs: list[Output] = []
    for index, tensor in enumerate(request.outputs):
        field = f"outputs[{index}]"
        if tensor.name == PROBABILITIES and not spec.categories:
            raise NoClassificationHead(spec.name)
        if tensor.name not in names:
            raise InvalidRequest(
                f"{field}.name", f"is {tensor.name!r}, must be {' or '.join(names)}"
            )
        if any(output.name == tensor.name for output in outputs):
            raise InvalidRequest(
                f"{field}.name", f"is {tensor.name} a second time; ask for it once"
            )
        if "shared_memory_region" in tensor.parameters:
            raise InvalidRequest(
                f"{field}.parameters.shared_memory_region",
                "is not supported; leave it out, and take the tensor from raw_output_contents",
            )
        top_k = 0
        if "classification" in tensor.parameters:
            asked = tensor.parameters["classification"].int64_param
            top_k = _labels(tensor.name, asked, spec, images, f"{field}.parameters.classification")
        outputs.append(Output(tensor.name, top_k))
    return outputs


def _labels(name: str, asked: int, spec: VariantSpec, images: int, field: str) -> int:
    """Return how many labels an image gets."""
    if name != PROBABILITIES:
        raise InvalidRequest(field, f"is set for {name}; set it for {PROBABILITIES} only")
    if asked < 1:
        raise InvalidRequest(field, f"is {asked}, must be 1 to {len(spec.categories)}")
    top_k = min(asked, len(spec.categories))  # as Triton does
    if top_k * images > MAX_LABELS:
        raise InvalidRequest(
            field,
            f"is {asked} for {images} images, {top_k * images} labels; a response has at most"
            f" {MAX_LABELS}: ask for {PROBABILITIES}, or send fewer images a call",
        )
    return top_k


class InferTask:
    """A request's wanted outputs, and the response made of the results of its images.

    Args:
        variant: The variant that computes it.
        outputs: From `parse_outputs`.
        count: The number of images.

    Attributes:
        variant: The variant that computes it.
        inference: The outputs that the pipeline computes.
    """

    def __init__(self, variant: LoadedVariant, outputs: list[Output], count: int) -> None:
        self.variant = variant
        self._outputs = outputs
        categories, top_k = len(variant.spec.categories), 0
        self._tensors: dict[str, np.ndarray[Any, Any]] = {}
        self._texts: list[list[bytes]] = [[] for _ in range(count)]
        for output in outputs:
            if output.top_k:
                top_k = output.top_k
            elif output.name == PROBABILITIES:
                top_k = categories
                self._tensors[output.name] = np.zeros((count, categories), np.float32)
            else:
                self._tensors[output.name] = np.empty((count, EMBEDDING_DIMENSION), np.float32)
        self._timing = {"decode_us": 0, "queue_us": 0, "compute_us": 0, "batch_size": 0}
        self._truncated: list[int] = []
        self.inference = InferenceTask(variant, top_k, EMBEDDING in self._tensors)
        self.result_bytes = self.inference.top_k * _LABEL_BYTES + sum(
            tensor.nbytes // count for tensor in self._tensors.values()
        )

    def fill(self, index: int, result: Result, image: ImageEvent) -> None:
        """Write the result of an image into the tensors.

        Args:
            index: Of the image.
            result: Its result.
            image: Where its time went.
        """
        if (probabilities := self._tensors.get(PROBABILITIES)) is not None:
            probabilities[index, result.indices] = result.probabilities
        elif self.inference.top_k:
            labels = self.variant.spec.categories
            self._texts[index] = [
                f"{probability:f}:{category}:{labels[category]}".encode()
                for category, probability in zip(
                    result.indices.tolist(), result.probabilities.tolist(), strict=True
                )
            ]
        if (embedding := self._tensors.get(EMBEDDING)) is not None:
            embedding[index] = result.embedding
        if ImageWarning.TRUNCATED in result.warnings:
            self._truncated.append(index)
        timing = self._timing
        for name, value in (
            ("decode_us", int(image.decode_s * 1e6)),
            ("queue_us", int(image.queue_s * 1e6)),
            ("compute_us", int(image.compute_s * 1e6)),
            ("batch_size", image.batch_size),
        ):
            timing[name] = max(timing[name], value)

    def response(self, request: Any) -> Any:
        """Return the response to a request, once all its images are filled in."""
        response = ModelInferResponse(
            model_name=request.model_name, model_version=VERSION, id=request.id
        )
        for output in self._outputs:
            if output.top_k:
                shape, datatype = [len(self._texts), output.top_k], "BYTES"
                texts = [text for texts in self._texts for text in texts]
                content = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
            else:
                tensor = self._tensors[output.name]
                shape, datatype, content = list(tensor.shape), "FP32", tensor.tobytes()
            response.outputs.add(name=output.name, datatype=datatype, shape=shape)
            response.raw_output_contents.append(content)
        parameters = response.parameters
        parameters["variant"].string_param = self.variant.spec.name
        parameters["digest"].string_param = self.variant.built.digest
        parameters["space"].string_param = self.variant.space
        for name, value in self._timing.items():
            parameters[name].int64_param = value
        if self._truncated:
            truncated = ",".join(map(str, sorted(self._truncated)))
            parameters["truncated_images"].string_param = truncated
        return response
