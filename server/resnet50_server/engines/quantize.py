"""Quantize float weights to int8, calibrated on images that the operator provides.

Convolutions, sums and pooling become int8 by onnxruntime's static quantization: weights with a
scale per channel, activations with a scale per tensor, from the smallest and the largest value that
the calibration images gave. The head and both outputs stay float.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet50_server.errors import InvalidImage, WeightsError
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import Transform

from .base import Engine, Images

# One image in this many is held out for the comparison with float.
HELD_OUT_EVERY = 4
MIN_IMAGES = 16
# More images change hardly anything, and each costs a forward pass.
MAX_IMAGES = 512
BATCH_SIZE = 8


@dataclass(frozen=True)
class Calibration:
    """How float weights are quantized.

    Attributes:
        directory: Directory of images.
        limits: Limits of the images.
        min_agreement: Required share of equal top categories, 0 to 1.
    """

    directory: Path
    limits: ImageLimits
    min_agreement: float


@dataclass(frozen=True)
class CalibrationImages:
    """Decoded images of one directory.

    Attributes:
        calibrating: uint8 [height, width, 3] each; they set the ranges.
        held_out: Other images of that form, for the comparison.
        digest: SHA-256 of all of them, 64 hex digits.
    """

    calibrating: Images
    held_out: Images
    digest: str


@dataclass(frozen=True)
class Agreement:
    """Agreement of int8 with float, on images that were not used for calibration.

    Attributes:
        calibration_images: Number of images that set the ranges.
        compared_images: Number of images that were compared.
        top_1: Share of them with the same top category, 0 to 1; 1 without a classification head.
        cosine: Mean cosine of the embeddings of both.
    """

    calibration_images: int
    compared_images: int
    top_1: float
    cosine: float


def read_images(directory: Path, transform: Transform, limits: ImageLimits) -> CalibrationImages:
    """Read the images of a directory and its subdirectories, decoded as requests are.

    Of more than `MAX_IMAGES`, that many are taken, evenly spread over their names.

    Raises:
        WeightsError: There are too few, or one cannot be read; names it.
    """
    paths = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )
    if len(paths) < MIN_IMAGES:
        raise WeightsError(
            f"calibration_dir: {directory} holds {len(paths)} files; int8 needs at least"
            f" {MIN_IMAGES} images, better a few hundred, of the kind that will be served"
        )
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), MAX_IMAGES)).astype(int)
    images, digest = [], hashlib.sha256()
    for path in (paths[index] for index in chosen):
        try:
            pixels = decode(path.read_bytes(), transform, limits)
        except (InvalidImage, OSError) as error:
            raise WeightsError(
                f"calibration_dir: {path} cannot be used: {error}; remove it from there"
            ) from error
        images.append(pixels)
        digest.update(pixels.tobytes())
    return CalibrationImages(
        calibrating=[image for index, image in enumerate(images) if index % HELD_OUT_EVERY],
        held_out=images[::HELD_OUT_EVERY],
        digest=digest.hexdigest(),
    )


def quantize_graph(graph: Path, images: Images, out: Path) -> None:
    """Write the int8 graph of a float one.

    Args:
        graph: A float graph of `onnx_export`.
        images: Calibration images, which set the ranges.
        out: Path of the int8 graph.
    """
    # Not at the top: they belong to an extra.
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime publishes no types
        def __init__(self) -> None:
            self._batches = batches(images, BATCH_SIZE)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": np.stack(batch)}

    model = onnx.load(graph)
    # The first sum is part of the normalization.
    normalization = next(node.name for node in model.graph.node if node.op_type == "Add")
    # BatchNorms are folded already; without this mark onnxruntime advises to fold them.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_static(
        model,
        out,
        Reader(),
        op_types_to_quantize=["Conv", "Relu", "Add", "MaxPool"],
        nodes_to_exclude=[normalization],
        per_channel=True,
        # Without VNNI, the sum of two 8-bit products overflows its 16 bits.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def compare(
    int8: Engine, fp32: Engine, calibration_images: int, held_out: Images, top_k: int = 1
) -> Agreement:
    """Compare two engines of the same weights.

    Args:
        int8: The quantized engine.
        fp32: The engine of the float weights.
        calibration_images: Number of images that calibrated `int8`.
        held_out: At least one other image, uint8 [height, width, 3].
        top_k: 1, or 0 without a classification head.
    """
    same, cosines = 0, []
    for batch in batches(held_out, BATCH_SIZE):
        one, two = int8.run(batch, top_k, True), fp32.run(batch, top_k, True)
        same += int((one.indices == two.indices).all(axis=1).sum())
        assert one.embeddings is not None and two.embeddings is not None  # requested
        lengths = np.linalg.norm(one.embeddings, axis=1) * np.linalg.norm(two.embeddings, axis=1)
        products = (one.embeddings * two.embeddings).sum(axis=1)
        cosines.extend(products / np.maximum(lengths, 1e-12))
    count = len(held_out)
    return Agreement(calibration_images, count, same / count, float(np.mean(cosines)))


def batches(images: Images, size: int) -> Iterator[Images]:
    """Yield `size` images at a time; the last batch may be smaller."""
    return (images[start : start + size] for start in range(0, len(images), size))
