"""Sizes of batches: by number of images and bytes, smaller once a server or proxy refused one."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable

from ._bulk_images import BulkImage
from ._unary import UPLOAD_ABOVE_BYTES
from .errors import (
    InvalidImageError,
    InvalidRequestError,
    Resnet50Error,
    ServerError,
    UnimplementedError,
)

# Images of one call. More cost a server no less, and delay the first result.
MAX_BATCH_IMAGES = 32
# Of each image's message, in bytes: tags, lengths and the fields of raw pixels.
OVERHEAD_BYTES = 64
# A proxy's refusal of a message that is too long (413 of HTTP), without its limit.
_REFUSED_BY_PROXY = re.compile("http2 header with status: 413")


def message_bytes(images: Iterable[BulkImage]) -> int:
    """Return the size of the message of these images, or a little more."""
    return sum(image.content_bytes + OVERHEAD_BYTES for image in images)


class BatchSizes:
    """Limits of the message of a call.

    Attributes:
        max_images: Maximum number of images.
        max_bytes: Maximum size in bytes, of several images.
    """

    def __init__(self) -> None:
        self.max_images = MAX_BATCH_IMAGES
        self.max_bytes = UPLOAD_ABOVE_BYTES

    def take(self, images: collections.deque[BulkImage], count: int) -> list[BulkImage]:
        """Remove and return the first images that fit into one call, at least one.

        Args:
            images: The images.
            count: How many are wanted at most.
        """
        taken = [images.popleft()]
        size = message_bytes(taken)
        while images and len(taken) < min(count, self.max_images):
            size += message_bytes([images[0]])
            if size > self.max_bytes:
                break
            taken.append(images.popleft())
        return taken

    def shrink(self, images: list[BulkImage], error: Resnet50Error) -> bool:
        """Remember that a batch was refused.

        Args:
            images: Images of the batch.
            error: Its error.

        Returns:
            True if smaller batches may pass.
        """
        size = message_bytes(images)
        if isinstance(error, UnimplementedError):  # a server without the calls of batches
            self.max_images = 1
        elif isinstance(error, InvalidImageError) and error.max_message_bytes is not None:
            self.max_bytes = min(self.max_bytes, error.max_message_bytes, size - 1)
        elif isinstance(error, InvalidRequestError):
            self.max_images = min(self.max_images, len(images) // 2)
        elif isinstance(error, ServerError) and _REFUSED_BY_PROXY.search(error.message):
            self.max_bytes = min(self.max_bytes, size // 2)
        else:
            return False
        return True
