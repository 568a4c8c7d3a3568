"""The answers of a fake server: scripted ones in order, else derived from the image's bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._preprocessed import ImageContent
from ..errors import Resnet50Error

# Probabilities by category, an embedding, or an error.
Answer: TypeAlias = Mapping[str, float] | ArrayLike | Resnet50Error


@dataclass(frozen=True)
class Received:
    """An image that the fake server has received.

    Attributes:
        method: Name of the RPC, e.g. "Classify".
        options: The options that were set, by their names in the contract, e.g. {"top_k": 3}.
        image: The file's bytes, or raw pixels.
        metadata: Metadata of the call, by key; the last value of a repeated key.
    """

    method: str
    options: dict[str, Any]
    image: ImageContent
    metadata: dict[str, Any]


class Script:
    """Answers in order. Thread-safe.

    Args:
        categories: The variant's categories.
        dimension: Length of embeddings.
    """

    def __init__(self, categories: Sequence[str], dimension: int) -> None:
        self.categories = tuple(categories)
        self.dimension = dimension
        self._answers: deque[Any] = deque()
        self._lock = threading.Lock()

    def add(self, answers: Sequence[Answer]) -> None:
        """Append answers, each for one image.

        Raises:
            ValueError: A category is unknown, a probability is not 0 to 1, or a vector has another
                length.
            TypeError: An answer is of no known type.
        """
        checked = [self._checked(one) for one in answers]
        with self._lock:
            self._answers.extend(checked)

    def next(self, image: ImageContent) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the probabilities [categories] and the embedding [dimension] for an image.

        Raises:
            Resnet50Error: A scripted error.
        """
        with self._lock:
            answer = self._answers.popleft() if self._answers else None
        if isinstance(answer, Resnet50Error):
            raise answer
        probabilities, vector = self._derived(image)
        if isinstance(answer, dict):
            probabilities = np.array(
                [answer.get(label, 0.0) for label in self.categories], dtype=np.float32
            )
        elif answer is not None:
            vector = answer
        return probabilities, vector

    def _checked(self, answer: Any) -> Any:
        if isinstance(answer, Resnet50Error):
            return answer
        if isinstance(answer, Mapping):
            for label, probability in answer.items():
                if label not in self.categories:
                    raise ValueError(
                        f"category {label!r} is none of the fake server's:"
                        f" {', '.join(self.categories)}; pass categories= to FakeServer"
                    )
                if not 0.0 <= probability <= 1.0:
                    raise ValueError(f"probability of {label!r} is {probability}, must be 0 to 1")
            return dict(answer)
        try:
            vector = np.asarray(answer, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.empty((), dtype=np.float32)
        if vector.ndim == 0:
            raise TypeError(
                f"an answer is {type(answer).__name__}, must be a dict of probabilities by"
                " category, an embedding, or an error of resnet50_client"
            )
        if vector.shape != (self.dimension,):
            raise ValueError(
                f"an embedding has shape {list(vector.shape)}, must be [{self.dimension}]"
            )
        return vector

    def _derived(self, image: ImageContent) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return an answer that depends on the image's bytes only."""
        content = image if isinstance(image, bytes) else image.pixels
        draw = np.random.default_rng(list(hashlib.sha256(content).digest()))
        logits = 3.0 * draw.standard_normal(len(self.categories))
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        # Not negative, like the output of a ReLU.
        vector = np.abs(draw.standard_normal(self.dimension))
        return probabilities.astype(np.float32), vector.astype(np.float32)
