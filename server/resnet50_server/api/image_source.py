"""The image of a request message, checked as far as that takes no decoding."""

from __future__ import annotations

from resnet50.v1 import image_pb2
from resnet50_server.errors import InvalidImage
from resnet50_server.images.limits import ImageLimits, check_length
from resnet50_server.images.preprocessed import check_present
from resnet50_server.images.raw import check_layout, check_raw
from resnet50_server.images.source import PreprocessedImage, RawImage, Source


def parse_image(image: image_pb2.Image, limits: ImageLimits) -> Source:
    """Return the image of a message.

    Raises:
        InvalidImage: It is missing, empty, too large, or its raw dimensions do not add up; names
            the field and the limit.
    """
    kind = image.WhichOneof("source")
    if kind is None:
        raise InvalidImage(
            "image",
            "is empty; set image.encoded, image.raw or image.preprocessed",
            kind="empty",
        )
    if kind == "raw":
        return parse_raw(image.raw, limits.max_pixels)
    if kind == "preprocessed":
        message = image.preprocessed
        preprocessed = PreprocessedImage(message.pixels, message.transform_digest)
        check_present(preprocessed)
        return preprocessed
    encoded: bytes = image.encoded  # protobuf copies it at each access
    check_length(len(encoded), limits)
    return encoded


def transform_digest(image: image_pb2.Image) -> str:
    """Return the digest of the transform that a message's image was preprocessed by; "" if none."""
    # An unset message reads as an empty one.
    return image.preprocessed.transform_digest


def parse_raw(message: image_pb2.RawImage, max_pixels: int) -> RawImage:
    """Return the raw pixels of a message.

    Raises:
        InvalidImage: Its dimensions do not add up.
    """
    raw = _raw(message, message.pixels)
    check_raw(raw, max_pixels)
    return raw


def parse_layout(message: image_pb2.RawImage, max_pixels: int) -> RawImage:
    """Return the size and layout of pixels that arrive in chunks, without pixels.

    Raises:
        InvalidImage: The dimensions do not add up, the rows are not packed, or it has pixels.
    """
    if message.pixels:
        raise InvalidImage(
            "image.raw.pixels",
            f"has {len(message.pixels)} bytes, must be empty in an upload; send them in chunks",
            kind="bad_raw",
        )
    if message.row_stride_bytes:
        raise InvalidImage(
            "image.raw.row_stride_bytes",
            f"is {message.row_stride_bytes}, must be 0 in an upload; send packed rows",
            kind="bad_raw",
        )
    raw = _raw(message, b"")
    check_layout(raw, max_pixels)
    return raw


def _raw(message: image_pb2.RawImage, pixels: bytes) -> RawImage:
    return RawImage(
        message.width,
        message.height,
        message.pixel_format,
        message.row_stride_bytes,
        pixels,
        message.color_matrix,
        message.color_range,
    )
