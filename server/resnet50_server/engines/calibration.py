"""Float weights as int8: a graph made from images that the operator names.

Convolutions, sums and pooling become int8 by onnxruntime's static quantization: weights with a
scale for each channel, activations with one for each tensor, from the smallest and the largest
value that the images gave. The head stays float, and so do both outputs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from resnet50_server.errors import InvalidImage, WeightsError
from resnet50_server.images.decode import decode
from resnet50_server.images.formats import ImageLimits
from resnet50_server.images.transform import Transform

from .agreement import batches
from .base import Images

# Of so many images one is kept back, to compare with.
HELD_OUT_EVERY = 4
MIN_IMAGES = 16
# More change hardly anything, and each costs a forward pass.
MAX_IMAGES = 512
BATCH = 8


@dataclass(frozen=True)
class CalibrationImages:
    """Decoded images of one folder.

    Attributes:
        calibrating: uint8 [crop, crop, 3] each; they set the ranges.
        held_out: The same; they are compared.
        digest: SHA-256 of all of them, 64 hex digits.
    """

    calibrating: Images
    held_out: Images
    digest: str


def read_images(directory: Path, transform: Transform, limits: ImageLimits) -> CalibrationImages:
    """Read the images of a folder and of those below it, by the server's own decoding.

    Of more than `MAX_IMAGES` it takes so many, evenly spread over their names.

    Raises:
        WeightsError: There are too few, or one cannot be read; names it.
    """
    paths = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    )
    if len(paths) < MIN_IMAGES:
        raise WeightsError(
            f"calibration_dir: {directory} holds {len(paths)} files; int8 needs at least"
            f" {MIN_IMAGES} images, better some hundred, of the kind that will be served"
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


def write_int8(graph: Path, images: Images, out: Path) -> None:
    """Write the int8 graph of a float one.

    Args:
        graph: A float graph of `onnx_graph`.
        images: Those that set the ranges.
        out: Where.
    """
    model = onnx.load(graph)
    # The first sum is part of the normalisation.
    normalisation = next(node.name for node in model.graph.node if node.op_type == "Add")
    # Its BatchNorms are folded already; without this mark onnxruntime advises to have it done.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_static(
        model,
        out,
        _Reader(images),
        op_types_to_quantize=["Conv", "Relu", "Add", "MaxPool"],
        nodes_to_exclude=[normalisation],
        per_channel=True,
        # Without VNNI, two products of 8 bits overflow the 16 bits that they are added in.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime publishes no types
    def __init__(self, images: Images) -> None:
        self._batches = batches(images, BATCH)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": np.stack(batch)}
