from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import struct
import zlib
from itertools import islice

import grpc
import numpy as np
import pytest
from PIL import Image

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client._aio_status import keep_status
from tests.support.pictures import encode, photo_like
from tests.support.serving import DECODING, computed, connected, server_processes, serving, until

JPEG = encode(photo_like(640, 480), "JPEG", quality=95)
Request = inference_pb2.ClassifyUploadRequest


def options(sha256: bytes = b"", **classify) -> Request:
    return Request(
        options=inference_pb2.ClassifyUploadOptions(
            options=inference_pb2.ClassifyOptions(**classify), sha256=sha256
        )
    )


def chunks(content: bytes, size: int = 10_000):
    for at in range(0, len(content), size):
        yield Request(chunk=content[at : at + size])


async def upload(channel: grpc.aio.Channel, *requests: Request):
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    return await keep_status(stub.ClassifyUpload(iter(requests)))


RAW = np.asarray(photo_like(300, 200))


def layout(**changes) -> image_pb2.RawImage:
    fields = {"width": 300, "height": 200, "pixel_format": image_pb2.PIXEL_FORMAT_RGB}
    return image_pb2.RawImage(**fields | changes)


def raw_options(sha256: bytes = b"", **changes) -> Request:
    message = inference_pb2.ClassifyUploadOptions(sha256=sha256, raw=layout(**changes))
    return Request(options=message)


@pytest.mark.parametrize("size", [7000, 10**9])
async def test_uploaded_raw_pixels_match_a_unary_call(size):
    async with serving(**DECODING) as server, connected(server) as channel:
        batches, pixels = computed(server), RAW.tobytes()
        await upload(channel, raw_options(hashlib.sha256(pixels).digest()), *chunks(pixels, size))
        image = image_pb2.Image(raw=layout(pixels=pixels))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await stub.Classify(inference_pb2.ClassifyRequest(image=image))
    (uploaded,), (alone,) = batches
    assert np.array_equal(uploaded, alone)


@pytest.mark.parametrize(
    ("changes", "sent", "text"),
    [
        ({}, RAW.tobytes()[:-1], "image.raw.pixels: has 179999 bytes"),
        ({}, RAW.tobytes() + b"x", "image.raw.pixels: has more than the 180000 bytes"),
        ({}, b"", "image.raw.pixels: has 0 bytes"),
        ({"pixels": b"abc"}, RAW.tobytes(), "image.raw.pixels: has 3 bytes, must be empty"),
        ({"row_stride_bytes": 2**31}, b"", "image.raw.row_stride_bytes: is 2147483648, must be 0"),
        ({"width": 60_000, "height": 60_000}, b"", "max_image_pixels"),
        ({"width": 0}, b"", "image.raw.width: is 0"),
        ({"pixel_format": 0}, b"", "image.raw.pixel_format: is PIXEL_FORMAT_UNSPECIFIED"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
async def test_raw_upload_that_breaks_the_contract_is_refused(changes, sent, text):
    async with serving(**DECODING) as server, connected(server) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await upload(channel, raw_options(**changes), *chunks(sent))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in refused.value.details()
        assert (await upload(channel, raw_options(), *chunks(RAW.tobytes()))).timing.batch_size == 1
        assert server.snapshot().requests == server.snapshot().bytes == 0


async def test_raw_upload_has_the_limit_of_pixels_and_not_of_files():
    async with serving(max_image_bytes=1000) as server, connected(server) as channel:
        assert (await upload(channel, raw_options(), *chunks(RAW.tobytes()))).timing.batch_size == 1
        with pytest.raises(grpc.RpcError, match="max_image_bytes"):
            await upload(channel, options(), *chunks(JPEG))


async def test_hopeless_raw_upload_ends_before_its_first_chunk():
    async with serving() as server, connected(server) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyUpload()
        await call.write(raw_options(width=60_000, height=60_000))
        # Nothing more is sent, and the end of the requests neither.
        with pytest.raises(grpc.RpcError, match="max_image_pixels") as refused:
            await call
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("size", [1, 7, 1000, 10**9])
async def test_upload_in_any_chunk_size_matches_a_unary_call(size):
    small = encode(photo_like(24, 24), "PNG")
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = await upload(channel, options(top_k=3), *chunks(small, size))
        alone = await stub.Classify(
            inference_pb2.ClassifyRequest(
                options=inference_pb2.ClassifyOptions(top_k=3),
                image=image_pb2.Image(encoded=small),
            )
        )
    assert reply.classification == alone.classification
    assert reply.variant == alone.variant


async def test_uploaded_pixels_arrive_whole():
    async with serving(**DECODING) as server, connected(server) as channel:
        batches, stub = computed(server), inference_pb2_grpc.InferenceServiceStub(channel)
        requests = [
            inference_pb2.EmbedUploadRequest(options=inference_pb2.EmbedUploadOptions()),
            *(inference_pb2.EmbedUploadRequest(chunk=one.chunk) for one in chunks(JPEG)),
        ]
        await stub.EmbedUpload(iter(requests))
        await stub.Embed(inference_pb2.EmbedRequest(image=image_pb2.Image(encoded=JPEG)))
    (uploaded,), (alone,) = batches
    assert np.array_equal(uploaded, alone)


async def test_digest_is_verified():
    right, wrong = hashlib.sha256(JPEG).digest(), hashlib.sha256(b"another").digest()
    async with serving() as server, connected(server) as channel:
        assert (await upload(channel, options(right), *chunks(JPEG))).timing.batch_size == 1
        with pytest.raises(grpc.RpcError) as damaged:
            await upload(channel, options(wrong), *chunks(JPEG))
        with pytest.raises(grpc.RpcError) as short:
            await upload(channel, options(b"abc"), *chunks(JPEG))
    assert damaged.value.code() is grpc.StatusCode.DATA_LOSS
    assert right.hex() in damaged.value.details()
    assert short.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "options.sha256: has 3 bytes, must have 32" in short.value.details()


@pytest.mark.parametrize(
    ("requests", "text"),
    [
        ([], "options: is missing"),
        ([Request(chunk=JPEG)], "options: is missing"),
        ([options()], "image.encoded: has 0 bytes"),
        ([options(), Request(chunk=b"")], "chunk: is empty"),
        ([options(), Request(chunk=JPEG), Request(chunk=b"")], "chunk: is empty"),
        ([options(), Request(chunk=JPEG[:100]), options()], "options: after the first message"),
        ([options(), Request(chunk=JPEG[:100]), Request()], "chunk: after the first message"),
        ([options(), Request(chunk=JPEG[:5000])], "truncated"),
        ([options(), Request(chunk=JPEG[:3])], "its header is not complete"),
        ([options(), Request(chunk=b"text")], "not a readable JPEG"),
        ([options(top_k=5000), Request(chunk=JPEG)], "options.top_k"),
    ],
)
async def test_upload_that_breaks_the_contract_is_refused(requests, text):
    async with serving(**DECODING) as server, connected(server) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await upload(channel, *requests)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in refused.value.details()
        assert (await upload(channel, options(), *chunks(JPEG))).timing.batch_size == 1
        assert server.snapshot().requests == server.snapshot().bytes == 0


def png_header(width: int, height: int) -> bytes:
    """Return a PNG up to and including the start of its data."""
    content = b""
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", bytes(50)),
    ):
        content += (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (b"this is no image, however much of it may come", "not a readable JPEG"),
        (png_header(60_000, 60_000), "max_image_pixels"),
    ],
    ids=["no image", "too many pixels"],
)
async def test_hopeless_upload_ends_after_its_first_chunk(start, text):
    async with serving() as server, connected(server) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyUpload()
        await call.write(options())
        await call.write(Request(chunk=start))
        # Nothing more is sent, and the end of the requests neither.
        with pytest.raises(grpc.RpcError) as refused:
            await call
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in refused.value.details()


async def test_header_behind_long_metadata_is_checked_as_it_arrives():
    async with serving() as server, connected(server) as channel:
        small = io.BytesIO()
        Image.new("RGB", (8, 8)).save(small, "JPEG")
        start, sizes = small.getvalue()[:2], small.getvalue()[2:]
        at = sizes.index(b"\xff\xc0") + 5  # of the height, in the frame header
        huge = sizes[:at] + struct.pack(">HH", 60_000, 60_000) + sizes[at + 4 :]
        comment = b"\xff\xfe" + struct.pack(">H", 60_002) + bytes(60_000)
        call = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyUpload()
        await call.write(options())
        for part in chunks(start + 3 * comment + huge):
            await call.write(part)
        with contextlib.suppress(asyncio.InvalidStateError):
            await call.write(Request(chunk=bytes(300_000)))  # and no end
        with pytest.raises(grpc.RpcError, match="max_jpeg_pixels"):
            await keep_status(call)


async def test_byte_limit_holds_while_the_image_arrives():
    async with serving(max_image_bytes=100_000) as server, connected(server) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyUpload()
        await call.write(options())
        endless = JPEG + bytes(200_000)
        for part in islice(chunks(endless), 11):  # the first byte too many is in the eleventh
            await call.write(part)
        with pytest.raises(grpc.RpcError, match="more than 100000 bytes") as refused:
            await call
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_upload_of_exactly_the_limit_is_answered():
    async with serving(max_image_bytes=len(JPEG)) as server, connected(server) as channel:
        assert (await upload(channel, options(), *chunks(JPEG))).classification.categories


async def test_stalled_upload_is_cut():
    async with serving(upload_idle_timeout_s=0.2) as server, connected(server) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyUpload()
        await call.write(options())
        await call.write(Request(chunk=JPEG[:1000]))
        with pytest.raises(grpc.RpcError) as cut:
            await call
        assert cut.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "upload_idle_timeout_s" in cut.value.details()
        assert server.snapshot().requests == server.snapshot().bytes == 0


async def test_cancelled_upload_leaves_nothing():
    async with serving() as server, connected(server) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyUpload()
        await call.write(options())
        await call.write(Request(chunk=JPEG[:1000]))
        await until(lambda: server.snapshot().bytes)
        call.cancel()
        await until(lambda: server.snapshot().requests == server.snapshot().bytes == 0)


async def test_bytes_of_uploads_count_while_they_arrive():
    async with (
        serving(max_request_bytes=len(JPEG) + 1000) as server,
        connected(server) as channel,
    ):
        half = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyUpload()
        await half.write(options())
        await half.write(Request(chunk=JPEG[:2000]))
        await until(lambda: server.snapshot().bytes >= 2000)
        with pytest.raises(grpc.RpcError, match="max_request_bytes") as refused:
            await upload(channel, options(), *chunks(JPEG))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await half.write(Request(chunk=JPEG[2000:]))
        await half.done_writing()
        assert (await half).timing.batch_size == 1


def peak_kib(pid: int) -> int:
    """Return the most memory that a process has held, in KiB."""
    with open(f"/proc/{pid}/status") as file:
        (line,) = (line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1])


async def test_large_upload_takes_at_most_2_5_times_its_size():
    """24 MB whose few pixels weigh little: what is held are the bytes. Decoders stop at the end."""
    content = encode(Image.new("RGB", (64, 64)), "PNG") + os.urandom(24_000_000)
    with server_processes() as start:
        process = start("--variants", "IMAGENET1K_V2", "--engine", "null")
        address, pid = process.wait_until_listening(), process.process.pid
        async with grpc.aio.insecure_channel(address) as channel:
            small = encode(photo_like(64, 64), "PNG")
            await upload(channel, options(), *chunks(small))
            before = peak_kib(pid)
            sha256 = hashlib.sha256(content).digest()
            reply = await upload(channel, options(sha256), *chunks(content, 256 * 1024))
            after = peak_kib(pid)
    assert reply.timing.batch_size == 1
    grown = (after - before) * 1024
    assert 1.0 * len(content) < grown < 2.5 * len(content)
