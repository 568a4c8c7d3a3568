"""The most memory that the server takes, whatever clients do: computed from its settings.

Each part is a limit that something in the server keeps; docs/reference/limits.md says which.
"""

from __future__ import annotations

from typing import NamedTuple

from resnet50_server.api.grpc_server import (
    PROBE_STREAMS,
    SIDE_RECEIVED,
    SIDE_SERVICES,
    SIDE_STREAMS,
)
from resnet50_server.api.listen import UNREAD_BYTES
from resnet50_server.images.pixel_budget import PIXEL_BYTES, SMALL_BUDGET_PIXELS
from resnet50_server.inference.quotas import message_slots
from resnet50_server.lifecycle.engine_builder import estimate_memory
from resnet50_server.settings import Settings

MIB = 2**20
# Python, PyTorch, gRPC and an engine's library, before any weights: 720 MiB measured.
PROCESS_BYTES = 900 * MIB
# Of ResNet50.
PARAMETERS = 25_557_032
# An image that waits for its batch has at least this many pixels, so that torchvision's own crops
# and those of most checkpoints give the same bound.
QUEUED_IMAGE_PIXELS = 256 * 256
# An answer with a thousand categories and an embedding, as messages.
ANSWER_BYTES = 80 * 1024
# An image's part of a response of the Open Inference Protocol, a thousand probabilities and an
# embedding as float32: in the message, serialized, and in gRPC.
OIP_ANSWER_BYTES = 40 * 1024
# A connection in gRPC, TLS included.
CONNECTION_BYTES = 64 * 1024
# A stream holds a frame that arrives, the newest one, and one that waits to be admitted.
MESSAGES_PER_STREAM = 3
# An upload holds a part that arrives, and gRPC the one before it.
MESSAGES_PER_UPLOAD = 2
# A raw pixel of the largest format, RGBA.
RAW_PIXEL_BYTES = 4
# An image in flight, and the message that it came in.
COPIES_IN_FLIGHT = 2


class Part(NamedTuple):
    """A part of the bound.

    Attributes:
        name: Its user, e.g. "decoding".
        size: How much, in bytes.
    """

    name: str
    size: int


def memory_bound(
    settings: Settings,
    instances: int = 1,
    input_pixels: int = QUEUED_IMAGE_PIXELS,
    variants: int | None = None,
) -> list[Part]:
    """Return the parts of what the server takes at most, in the main memory.

    Args:
        settings: How it serves.
        instances: Batches that an engine on the CPU computes at once.
        input_pixels: Pixels of the largest network input of the variants.
        variants: Number of variants; None for those of `settings.variants`.
    """
    message = settings.max_message_bytes
    precision = "fp32" if settings.precision == "auto" else settings.precision
    variant_bytes = estimate_memory(
        PARAMETERS, precision, settings.engine, settings.instances or instances
    )
    engines = not settings.stub_engine
    count = len(settings.variants) if variants is None else variants
    all_variants = settings.max_variants_bytes or variant_bytes * count
    receiving = message_slots(settings.max_receive_bytes, message) + SIDE_SERVICES * SIDE_RECEIVED
    streams = settings.max_streams
    decoded = settings.max_decode_pixels or settings.max_image_pixels
    queued_image = 3 * max(input_pixels, QUEUED_IMAGE_PIXELS)
    unread = 2 * settings.max_requests + streams + settings.max_uploads + PROBE_STREAMS
    return [
        Part("the process", PROCESS_BYTES),
        Part("variants", all_variants if engines else 0),
        Part(
            "images in flight",
            COPIES_IN_FLIGHT * max(settings.max_request_bytes, _largest_image(settings)),
        ),
        # The last two are being handed over, from gRPC to Python and to the message's parser.
        Part("messages being received", (receiving + 2) * message),
        Part("upload buffers", MESSAGES_PER_UPLOAD * settings.max_uploads * message),
        Part("stream buffers", (MESSAGES_PER_STREAM * streams + SIDE_STREAMS) * message),
        Part("calls not read yet", 2 * unread * UNREAD_BYTES),
        Part("decoding", (decoded + SMALL_BUDGET_PIXELS) * PIXEL_BYTES),
        Part("decoded images", settings.max_requests * queued_image),
        Part("unsent responses", settings.max_send_bytes),
        Part("stream responses", streams * _stream_responses(settings)),
        Part("response cache", settings.response_cache_bytes),
        Part("connections", settings.max_connections * len(settings.listen) * CONNECTION_BYTES),
    ]


def _largest_image(settings: Settings) -> int:
    """Return the bytes of the largest image that may be sent: encoded, or pixels in chunks."""
    return max(settings.max_image_bytes, RAW_PIXEL_BYTES * settings.max_image_pixels)


def _stream_responses(settings: Settings) -> int:
    """Return the bytes of a stream's responses that its client has not taken."""
    frames = settings.max_frames_in_flight * ANSWER_BYTES
    # One request of the Open Inference Protocol may have more images than that, and is then alone.
    return max(frames, settings.oip * settings.max_images_per_call * OIP_ANSWER_BYTES)


def total(parts: list[Part]) -> int:
    """Return the bound, in bytes."""
    return sum(part.size for part in parts)


def describe(parts: list[Part]) -> str:
    """Return the bound and its parts in one line, in MiB, the largest first."""
    largest_first = sorted(parts, key=lambda part: -part.size)
    listed = ", ".join(f"{part.name} {part.size // MIB}" for part in largest_first if part.size)
    return f"{total(parts) // MIB} MiB of memory at most: {listed}"
