"""Expected answers: the same files run by plain torch, with torchvision's transform.

Nothing of the server is used for it: Pillow decodes, torchvision's own preset resizes, crops and
normalises, and torchvision's own ResNet50 runs eagerly in fp32. Every checkpoint has another
network, other categories, and mostly another geometry, so that an answer that mixes two of them is
like none.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.models import ResNet
from torchvision.transforms._presets import ImageClassification

from resnet50_client import Category, Classification, Embedding, VariantRef, VideoFrame
from resnet50_client.images import ImageInput
from tests.support.pictures import PHOTOS, encode, photo_like
from tests.support.weights import TRANSFORM, StateDict, calm, custom_variant, run, torchvision_model

# Tolerances of an answer: a probability, and a vector, as a share of its length. Resampling, in
# which the server is within one level of Pillow, makes up nearly all of it: up to 7e-4 and 3e-5. A
# cosine would prove little: embeddings of one network point much the same way, whatever they show.
PROBABILITY_OFF, VECTOR_OFF = 3e-3, 1e-3
# Maximum rounding of float16, as a share of each number of a vector.
HALF_OFF = 2.0**-11
# Answers that are to be told apart differ by so many times what is allowed.
TELLING = 5.0
CHECKPOINT = "weights.safetensors"


class Wrong(Exception):
    """An answer is not what it has to be; says what it is and what it had to be."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture.

    Attributes:
        name: For reports.
        image: As it is sent.
        pixels: Its pixels, RGB.
    """

    name: str
    image: ImageInput = field(repr=False)
    pixels: Image.Image = field(repr=False)


def pictures() -> list[Picture]:
    """Return pictures of many formats and sizes, raw ones among them."""
    china, flower = (path.read_bytes() for path in PHOTOS)
    drawn = [photo_like(width, height, seed) for seed, (width, height) in enumerate(SIZES)]
    wide, tall, small, square, exact, grey, plain = (
        *drawn[:5],
        *(one.convert("L") for one in drawn[5:]),
    )
    files = {
        "china.jpg": china,
        "flower.jpg": flower,
        "wide.jpg": encode(wide, "JPEG", quality=92),
        "tall.png": encode(tall),
        "small.webp": encode(small, "WEBP", lossless=True),
        "grey.jpg": encode(grey, "JPEG"),
    }
    found = [Picture(name, file, opened(file)) for name, file in files.items()]
    bgr = np.ascontiguousarray(np.asarray(square)[:, :, ::-1])
    return [
        *found,
        Picture("square, BGR", VideoFrame(bgr, "BGR", 0.0, 0), square),
        Picture("exact, RGB", np.asarray(exact), exact),
        Picture("plain, grey", np.asarray(plain), plain.convert("RGB")),
    ]


SIZES = ((500, 300), (240, 420), (160, 120), (330, 330), (224, 224), (300, 260), (300, 300))


def large_pictures() -> list[Picture]:
    """Return pictures whose files are too large for one message."""
    drawn = [photo_like(1280, 1120, seed) for seed in (20, 21)]
    return [Picture(f"large {n}.bmp", encode(one, "BMP"), one) for n, one in enumerate(drawn)]


def opened(file: bytes) -> Image.Image:
    """Return what Pillow makes of a file, in RGB."""
    return Image.open(io.BytesIO(file)).convert("RGB")


@dataclass(frozen=True)
class Kind:
    """How a checkpoint is made out of one network.

    Attributes:
        channels: In which order its first layer takes red, green and blue.
        resize: Of its transform.
        crop: Of its transform.
        categories: How many.
    """

    channels: tuple[int, int, int]
    resize: int
    crop: int
    categories: int = 10


KINDS = {
    "A": Kind((0, 1, 2), 224, 224),
    "B": Kind((2, 1, 0), 256, 192),
    "C": Kind((1, 2, 0), 320, 224, categories=8),
    "D": Kind((2, 0, 1), 224, 208),
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A custom variant in a folder of its own, and its answers.

    Attributes:
        label: Which one.
        folder: Where it lies.
        digest: SHA-256 of its weights.
        categories: Names of its categories.
        state: Its weights.
        transform: torchvision's.
    """

    label: str
    folder: Path
    digest: str
    categories: tuple[str, ...]
    state: StateDict = field(repr=False)
    transform: ImageClassification = field(repr=False)


def make(label: str, folder: Path) -> Checkpoint:
    """Write one of `KINDS` into a folder; a whole ResNet50 of about 94 MB."""
    kind = KINDS[label]
    state = dict(calm(1, 10))
    state["conv1.weight"] = state["conv1.weight"][:, list(kind.channels)].contiguous()
    for key in ("fc.weight", "fc.bias"):  # another order of its categories too
        state[key] = state[key].roll(list(KINDS).index(label), 0)[: kind.categories].contiguous()
    categories = tuple(f"{label} {index}" for index in range(kind.categories))
    numbers = TRANSFORM | {"resize": kind.resize, "crop": kind.crop}
    custom_variant(
        folder,
        state,
        kind.categories,
        checkpoint=CHECKPOINT,
        categories=categories,
        transform=numbers,
    )
    return Checkpoint(
        label,
        folder,
        hashlib.sha256((folder / CHECKPOINT).read_bytes()).hexdigest(),
        categories,
        state,
        ImageClassification(crop_size=kind.crop, resize_size=kind.resize),
    )


@dataclass(frozen=True, eq=False)
class Answer:
    """Expected answer of one checkpoint to one picture.

    Attributes:
        probabilities: float32 [categories].
        vector: float32 [2048].
    """

    probabilities: NDArray[np.float32]
    vector: NDArray[np.float32]

    def off(self, other: Answer) -> tuple[float, float]:
        """Return how far another one is: in a probability, and as a share of the vector."""
        count = min(len(self.probabilities), len(other.probabilities))
        probability = np.abs(self.probabilities[:count] - other.probabilities[:count]).max()
        return float(probability), vector_off(other.vector, self.vector)


def answer_of(model: ResNet, transform: ImageClassification, picture: Picture) -> Answer:
    """Run torchvision's model on one picture."""
    probabilities, vectors = run(model, transform(picture.pixels)[None])
    return Answer(probabilities[0].numpy(), vectors[0].numpy())


def vector_off(vector: NDArray[np.floating], right: NDArray[np.float32]) -> float:
    """Return how far a vector is from the right one, as a share of its length."""
    return float(np.linalg.norm(vector.astype(np.float64) - right) / np.linalg.norm(right))


class Expected:
    """The right answers of some checkpoints to some pictures.

    Args:
        checkpoints: Which.
        shown: The pictures.

    Raises:
        ValueError: Two of the answers are too much alike to tell them apart.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], shown: Iterable[Picture]) -> None:
        self._checkpoints = {one.digest: one for one in checkpoints}
        self._answers: dict[tuple[str, str], Answer] = {}
        shown = list(shown)
        known: dict[str, Answer] = {}
        torn: dict[str, Answer] = {}
        for checkpoint in checkpoints:
            model = torchvision_model(checkpoint.state)
            for picture in shown:
                answer = answer_of(model, checkpoint.transform, picture)
                self._answers[checkpoint.digest, picture.name] = answer
                known[f"{checkpoint.label} on {picture.name}"] = answer
            # A torn swap would compute this: pixels of one geometry, weights of another.
            for other in checkpoints:
                if repr(other.transform) != repr(checkpoint.transform):
                    answer = answer_of(model, other.transform, shown[0])
                    torn[f"{checkpoint.label} on {shown[0].name} as {other.label}"] = answer
        pairs = itertools.combinations(known.items(), 2)
        torn_pairs = itertools.product(known.items(), torn.items())
        for (one, first), (two, second) in itertools.chain(pairs, torn_pairs):
            probability, vector = first.off(second)
            if probability < TELLING * PROBABILITY_OFF or vector < TELLING * VECTOR_OFF:
                raise ValueError(
                    f"{one} and {two} are too much alike: {probability:.1e}, {vector:.1e}"
                )

    def check_classification(
        self,
        picture: Picture,
        result: Classification,
        top_k: int | None,
        min_probability: float | None,
        include_embedding: bool,
    ) -> None:
        """Compare a reply with the right answer of the weights that it names.

        Raises:
            Wrong: It is not the right one.
        """
        checkpoint, answer = self._of(result.variant, picture)
        right = answer.probabilities
        least = -1.0 if min_probability is None else min_probability
        count = min(top_k or 5, len(right))
        for category in result:
            self._check_category(checkpoint, category, right)
        given = [category.probability for category in result]
        if given != sorted(given, reverse=True) or len({one.index for one in result}) != len(given):
            raise Wrong(f"categories out of order or twice: {result!r}")
        # Which belong there; those at a threshold may, or may not.
        sure = int((np.sort(right)[::-1][:count] >= least + PROBABILITY_OFF).sum())
        possible = int((np.sort(right)[::-1][:count] >= least - PROBABILITY_OFF).sum())
        if not sure <= len(given) <= possible:
            raise Wrong(f"{len(given)} categories instead of {sure} to {possible}: {result!r}")
        left_out = np.delete(right, [category.index for category in result])
        if given and len(left_out) and left_out.max() > given[-1] + 2 * PROBABILITY_OFF:
            raise Wrong(f"a category of {left_out.max():.4f} is missing: {result!r}")
        if (result.embedding is not None) != include_embedding:
            raise Wrong(f"embedding: {result.embedding!r}, asked for: {include_embedding}")
        if result.embedding is not None:
            if result.embedding.variant != result.variant:
                raise Wrong(f"categories of {result.variant!r}, {result.embedding!r}")
            self.check_embedding(picture, result.embedding, False, "float32")

    def check_embedding(
        self, picture: Picture, result: Embedding, l2_normalize: bool, dtype: str
    ) -> None:
        """Compare a vector with the right one of the weights that it names.

        Raises:
            Wrong: It is not the right one.
        """
        _, answer = self._of(result.variant, picture)
        space = f"{result.variant.name}@{result.variant.digest[:12]}"
        if result.space != space:
            raise Wrong(f"the space is {result.space!r} instead of {space!r}")
        if result.vector.dtype != np.dtype(dtype) or result.l2_normalized != l2_normalize:
            raise Wrong(f"{result!r} instead of {dtype}, of length 1: {l2_normalize}")
        if result.vector.shape != answer.vector.shape:
            raise Wrong(f"a vector of {result.vector.shape} instead of {answer.vector.shape}")
        right = answer.vector
        if l2_normalize:
            right = right / np.linalg.norm(right)
        off = vector_off(result.vector, right)
        if not off <= VECTOR_OFF + (HALF_OFF if dtype == "float16" else 0.0):  # NaN is not either
            raise Wrong(f"a vector that is {off:.2e} of its length from the right one: {result!r}")

    def label(self, digest: str) -> str:
        """Return the label of a checkpoint by its digest."""
        return self._checkpoints[digest].label

    def _of(self, variant: VariantRef, picture: Picture) -> tuple[Checkpoint, Answer]:
        checkpoint = self._checkpoints.get(variant.digest)
        if checkpoint is None:
            raise Wrong(f"the digest is that of no checkpoint: {variant!r}")
        return checkpoint, self._answers[variant.digest, picture.name]

    @staticmethod
    def _check_category(
        checkpoint: Checkpoint, category: Category, right: NDArray[np.float32]
    ) -> None:
        if not 0 <= category.index < len(right):
            raise Wrong(f"{checkpoint.label} has no category {category.index}: {category!r}")
        if category.label != checkpoint.categories[category.index]:
            raise Wrong(
                f"category {category.index} of {checkpoint.label} is called {category.label!r}"
                f" instead of {checkpoint.categories[category.index]!r}"
            )
        off = abs(category.probability - float(right[category.index]))
        if not off <= PROBABILITY_OFF:  # NaN is not either
            raise Wrong(
                f"{category.label}: {category.probability:.5f} instead of"
                f" {right[category.index]:.5f}"
            )
