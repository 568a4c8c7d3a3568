"""The group of limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from resnet50_settings.groups import Group


class Limits(Group):
    """Admission control: how much the server accepts, in all and per caller."""

    title = "Limits"

    max_requests: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum requests in flight, and as many again whose message is still"
            " arriving; further ones are rejected.",
        ),
    ] = 1024
    max_request_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum bytes of images in flight, including uploads that are arriving.",
        ),
    ] = 256 * 2**20
    max_receive_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="Memory for single-image messages that are arriving, each counted as"
            " --max-message-bytes; further calls wait.",
        ),
    ] = 192 * 2**20
    max_send_bytes: Annotated[
        int,
        Field(
            ge=2**20,
            description="Memory for responses that clients have not received, in bytes; beyond it"
            " the oldest ones of the caller with the most are cancelled.",
        ),
    ] = 64 * 2**20
    max_streams: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum open streams; further ones are rejected. Each may buffer three"
            " messages of --max-message-bytes.",
        ),
    ] = 64
    max_uploads: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum concurrent uploads; further ones are rejected. Each may buffer two"
            " messages of --max-message-bytes.",
        ),
    ] = 32
    max_requests_per_caller: Annotated[
        int,
        Field(
            ge=1,
            description="Like --max-requests, per caller: a token, a client certificate or, without"
            " either, an address. Behind a proxy without tokens, all clients share one limit.",
        ),
    ] = 512
    max_request_bytes_per_caller: Annotated[
        int, Field(ge=1, description="Like --max-request-bytes, per caller.")
    ] = 128 * 2**20
    max_receive_bytes_per_caller: Annotated[
        int, Field(ge=1, description="Like --max-receive-bytes, per caller.")
    ] = 96 * 2**20
    max_streams_per_caller: Annotated[
        int, Field(ge=1, description="Like --max-streams, per caller.")
    ] = 32
    max_uploads_per_caller: Annotated[
        int, Field(ge=1, description="Like --max-uploads, per caller.")
    ] = 16
    max_rate_per_caller: Annotated[
        float,
        Field(
            ge=0,
            description="Rate limit: maximum images per second per caller, frames included, with"
            " bursts of the same size. 0: no limit.",
        ),
    ] = 0.0
    max_message_bytes: Annotated[
        int,
        Field(
            ge=1024,
            lt=2**31,
            description="Maximum size of a gRPC message, in bytes; limits raw images and frames."
            " The default, gRPC's own, fits 1920 x 1080 in YUV 4:2:0. The SDK uploads larger files"
            " in chunks.",
        ),
    ] = 4 * 2**20
    max_images_per_call: Annotated[
        int,
        Field(ge=1, le=4096, description="Maximum images of a ClassifyBatch or EmbedBatch call."),
    ] = 128
    max_image_bytes: Annotated[
        int, Field(ge=1, description="Maximum size of an encoded image, in bytes.")
    ] = 32 * 2**20
    max_image_pixels: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum width x height of an image as it is decoded, in pixels.",
        ),
    ] = 50_000_000
    max_jpeg_pixels: Annotated[
        int | None,
        Field(
            ge=1,
            description="Maximum width x height that a JPEG may declare, in pixels. Default: 5 x"
            " --max-image-pixels.",
        ),
    ] = None
    exact_jpeg_pixels: Annotated[
        int | None,
        Field(
            ge=1,
            description="JPEGs of more pixels are decoded at 1/2, 1/4 or 1/8 of their size, at"
            " least three times what they are resized to. Default: --max-image-pixels.",
        ),
    ] = None
    truncated_images: Annotated[
        Literal["refuse", "accept"],
        Field(
            description="Images whose data ends early: refuse them, or answer from the part that is"
            " there, with a warning in the response.",
        ),
    ] = "refuse"
    max_decode_pixels: Annotated[
        int | None,
        Field(
            ge=1,
            description="Maximum pixels decoded concurrently, at 22 bytes each, small images apart;"
            " further images wait. Default: one image of --max-image-pixels.",
        ),
    ] = None
    max_frames_in_flight: Annotated[
        int, Field(ge=1, le=4096, description="Maximum frames in flight per stream (backpressure).")
    ] = 64
