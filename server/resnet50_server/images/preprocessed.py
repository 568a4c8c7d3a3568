"""Images that the caller has preprocessed: check that they are the variant's input."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet50_server.errors import InvalidImage, TransformMismatch

from .source import PreprocessedImage
from .transform import Transform

FIELD = "image.preprocessed"


def check_present(image: PreprocessedImage) -> None:
    """Refuse an image without pixels or without the digest of its transform.

    Raises:
        InvalidImage: One of the two is missing.
    """
    if not image.pixels:
        raise InvalidImage(f"{FIELD}.pixels", "has 0 bytes; send the crop", kind="empty")
    if not image.transform_digest:
        raise InvalidImage(
            f"{FIELD}.transform_digest",
            "is empty; set it to Transform.digest of the variant, from GetVariant",
            kind="bad_raw",
        )


def check_transform(digest: str, transform: Transform, field: str) -> None:
    """Refuse an image that another transform made.

    Args:
        digest: Of the transform that made it.
        transform: The variant's.
        field: Path of the field with the digest.

    Raises:
        TransformMismatch: The two differ.
    """
    if digest != transform.digest:
        raise TransformMismatch(field, digest, transform.digest, str(transform))


def input_bytes(transform: Transform) -> int:
    """Return the size of the network's input in uint8 RGB, in bytes."""
    height, width = transform.input_size
    return height * width * 3


def preprocessed_pixels(image: PreprocessedImage, transform: Transform) -> NDArray[np.uint8]:
    """Return the pixels of a preprocessed image.

    Args:
        image: The image.
        transform: The variant's.

    Returns:
        uint8 [height, width, 3] of the network's input, RGB; a read-only view of the message.

    Raises:
        TransformMismatch: Another transform made it.
        InvalidImage: It has another size than the network's input.
    """
    check_transform(image.transform_digest, transform, f"{FIELD}.transform_digest")
    height, width = transform.input_size
    length = input_bytes(transform)
    if len(image.pixels) != length:
        raise InvalidImage(
            f"{FIELD}.pixels",
            f"has {len(image.pixels)} bytes, the variant's input of {height} x {width} pixels in"
            f" RGB has {length}",
            kind="bad_raw",
        )
    return np.frombuffer(image.pixels, dtype=np.uint8).reshape(height, width, 3)
