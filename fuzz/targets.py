"""Fuzz targets: functions that take any bytes, and raise `Finding` if a promise is broken.

The promise, wherever bytes come from a stranger: a result, or a refusal of ours that says what is
wrong, within a bounded time and memory. Each target says its other requirements. None of them
needs atheris: `tests/unit/server/test_fuzz_corpus.py` replays the corpus in every run of the tests.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
import torch  # noqa: F401  images are resized by torch once it is imported, as by servers
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from pydantic_settings import SettingsError

from fuzz.calls import Calls
from resnet50.v1 import image_pb2, inference_pb2, variant_pb2
from resnet50_client import Resnet50Error, _codec, _variant_codec
from resnet50_client._frames import StreamLimits
from resnet50_client._pending_frames import PendingFrames
from resnet50_client._status import error_of, error_of_status
from resnet50_server.api.image_source import parse_image
from resnet50_server.auth.tokens import parse_tokens
from resnet50_server.errors import InvalidImage, UnusableSetting, WeightsError
from resnet50_server.images.decode import decode
from resnet50_server.images.decode_guard import silence_decoders
from resnet50_server.images.formats import check_header
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.raw import raw_to_rgb
from resnet50_server.images.source import RawImage, Source
from resnet50_server.images.transform import Transform
from resnet50_server.settings import Settings
from resnet50_server.variants.spec import parse_variant
from resnet50_server.variants.transform_file import TransformFile, transform_json
from resnet50_server.variants.transform_text import parse_transform_text

Target: TypeAlias = Callable[[bytes], None]

ROOT = Path(__file__).resolve().parents[1]

# Small, so that what passes them is cheap, and what is dear is a finding.
LIMITS = ImageLimits(
    max_bytes=2**20,
    max_pixels=2**18,
    timeout_s=5.0,
    max_jpeg_pixels=2**20,
    exact_jpeg_pixels=2**16,
)
TRANSFORM = Transform(resize=36, crop=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# Decoding costs up to 22 bytes a pixel (docs/how-to/secure.md), and libraries keep some of it.
MAX_GROWTH_BYTES = 64 * 2**20
# Of this thread, so that a busy machine finds nothing. Input within the limits takes 0.05.
MAX_CPU_S = 5.0
# Those that a server decodes with Pillow, without AVIF.
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

silence_decoders()


class Finding(Exception):
    """A promise is broken; says which."""


def checked(target: Target, content: bytes) -> None:
    """Run a target within bounds of time and memory.

    Args:
        target: One of `TARGETS`.
        content: Any bytes.

    Raises:
        Exception: Whatever the target raises; `Finding` if it takes too much.
    """
    peak, started = peak_bytes(), time.thread_time()
    target(content)
    took, grown = time.thread_time() - started, peak_bytes() - peak
    if took > MAX_CPU_S:
        raise Finding(f"took {took:.1f} s of CPU, the bound is {MAX_CPU_S:g} s")
    # The peak only rises, so a rise is this input's; one below an earlier peak is not seen.
    if grown > MAX_GROWTH_BYTES:
        raise Finding(f"took {grown} bytes of memory, the bound is {MAX_GROWTH_BYTES}")


def peak_bytes() -> int:
    """Return the most memory that this process has used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Encoded images


def images(content: bytes) -> None:
    """Decode a file; check its first bytes as an upload does.

    That check may not refuse what decoding takes, or the same image would be answered as a request
    and refused as an upload. And nothing is called broken that Pillow by itself decodes.
    """
    with contextlib.suppress(InvalidImage):
        parse_image(image_pb2.Image(encoded=content), LIMITS)
        pixels, refusal = _decoded(content)
        for early in _refusals_while_arriving(content):
            if refusal is None:
                raise Finding(f"decoded, and yet refused: {early}") from early
        if pixels is not None:
            _require_input(pixels)
        if refusal is not None and refusal.kind in ("truncated", "unreadable"):
            _require_broken(content, refusal)


def _decoded(source: Source) -> tuple[NDArray[np.uint8] | None, InvalidImage | None]:
    try:
        return decode(source, TRANSFORM, LIMITS), None
    except InvalidImage as refusal:
        _require_reason(refusal)
        return None, refusal


def _refusals_while_arriving(content: bytes) -> Iterator[InvalidImage]:
    """Yield what the header checks of an upload refuse a file with."""
    length = 12
    while length <= len(content):
        try:
            if check_header(content[:length], TRANSFORM, LIMITS):
                return
        except InvalidImage as refusal:
            yield refusal
        length *= 2


def _require_broken(content: bytes, refusal: InvalidImage) -> None:
    """Require that Pillow, without any check of ours, does not decode a file either.

    Of AVIF, boxes that contradict each other are refused, of which its decoder takes one.
    """
    try:
        with Image.open(io.BytesIO(content), formats=PILLOW_FORMATS) as opened:
            opened.convert("RGB")
    except Exception:  # decoders raise many kinds for broken files
        return
    raise Finding(f"Pillow decodes it, and yet it is refused: {refusal}") from refusal


def _require_input(pixels: NDArray[np.uint8]) -> None:
    """Require what the engine takes."""
    shape = (*TRANSFORM.input_size, 3)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise Finding(f"not the network's input: {pixels.dtype} {pixels.shape}")


def _require_reason(refusal: InvalidImage) -> None:
    if not refusal.field.startswith("image") or not refusal.reason.strip() or not refusal.kind:
        raise Finding(f"a refusal that does not say what is wrong: {refusal!r}") from refusal


# Raw images

_NUMBERS = struct.Struct("<IIIIh")


def raw(content: bytes) -> None:
    """Take a raw image of any numbers.

    Its pixels must be those at the places that its numbers say: the same picture, with its rows cut
    out of the bytes one by one and packed, gives the same.
    """
    message = raw_image(content)
    try:
        source = parse_image(image_pb2.Image(raw=message), LIMITS)
    except InvalidImage as refusal:
        _require_reason(refusal)
        return
    if not isinstance(source, RawImage):
        raise Finding(f"{type(source).__name__} came out of a raw image")
    same = np.array_equal(raw_to_rgb(source), raw_to_rgb(_packed(source)))
    if not same:
        raise Finding("other pixels than those of its rows")
    pixels, _ = _decoded(source)
    if pixels is not None:
        _require_input(pixels)


def raw_image(content: bytes) -> image_pb2.RawImage:
    """Make a raw image of bytes: its numbers, by how many bytes it lies, and its pixels.

    The high bytes of the pixel format's number are the matrix and the range.

    Pixels are repeated until there are as many as there should be, give or take the lie.
    """
    numbers = content[: _NUMBERS.size].ljust(_NUMBERS.size, b"\0")
    width, height, pixel_format, stride, lie = _NUMBERS.unpack(numbers)
    pattern = content[_NUMBERS.size :] or b"\0"
    color_matrix, color_range = pixel_format >> 24, pixel_format >> 16 & 0xFF
    pixel_format &= 0xFFFF
    planar = pixel_format in (image_pb2.PIXEL_FORMAT_NV12, image_pb2.PIXEL_FORMAT_I420)
    rows = height * 3 // 2 if planar else height
    samples = {image_pb2.PIXEL_FORMAT_RGB: 3, image_pb2.PIXEL_FORMAT_BGR: 3}
    samples[image_pb2.PIXEL_FORMAT_RGBA] = 4
    length = rows * (stride or width * samples.get(pixel_format, 1)) + lie
    if not 0 <= length <= 2**21:
        length = len(pattern)
    return image_pb2.RawImage(
        width=width,
        height=height,
        pixel_format=pixel_format,
        row_stride_bytes=stride,
        pixels=(pattern * (length // len(pattern) + 1))[:length],
        color_matrix=color_matrix,
        color_range=color_range,
    )


def raw_bytes(message: image_pb2.RawImage, lie: int = 0) -> bytes:
    """Return the bytes that `raw_image` makes a message of."""
    kind = message.color_matrix << 24 | message.color_range << 16 | message.pixel_format
    sides = (message.width, message.height, kind, message.row_stride_bytes)
    return _NUMBERS.pack(*sides, lie) + message.pixels


def _packed(source: RawImage) -> RawImage:
    """Return the same picture without what lies between its rows."""
    planar = source.pixel_format in (image_pb2.PIXEL_FORMAT_NV12, image_pb2.PIXEL_FORMAT_I420)
    samples: dict[int, int] = {image_pb2.PIXEL_FORMAT_GRAY: 1, image_pb2.PIXEL_FORMAT_RGBA: 4}
    row = source.width * (1 if planar else samples.get(source.pixel_format, 3))
    stride = source.row_stride_bytes or row
    planes = [(source.height, stride, row)]
    if source.pixel_format == image_pb2.PIXEL_FORMAT_NV12:
        planes.append((source.height // 2, stride, row))
    elif source.pixel_format == image_pb2.PIXEL_FORMAT_I420:
        planes += [(source.height // 2, (stride + 1) // 2, row // 2)] * 2
    cut, at = [], 0
    for rows, between, length in planes:
        for _ in range(rows):
            line = source.pixels[at : at + length]
            if len(line) != length:
                raise Finding(f"a row from byte {at} on is not there whole")
            cut.append(line)
            at += between
    packed = b"".join(cut)
    return source._replace(row_stride_bytes=0, pixels=packed)


# Calls


def calls(content: bytes) -> None:
    """Send a call of any RPC to the servicers; see `calls.Calls`."""
    complaint = _running_calls().make(content)
    if complaint is not None:
        raise Finding(complaint)


_calls: list[Calls] = []


def _running_calls() -> Calls:
    """Return the servicers, which are started once."""
    if not _calls:
        _calls.append(Calls())
    return _calls[0]


def stop_calls() -> None:
    """Stop the servicers, if any run."""
    while _calls:
        _calls.pop().close()


# Replies

_STREAMS = (
    _codec.classify_stream("ordered", None, None, None, False, None, None, 1),
    _codec.embed_stream("latest", None, False, "float16", None, None, 1),
)


def _pending(kind: Any, answered: int) -> PendingFrames:
    """Return the state of a stream that waits for the answer to a frame, if its id is small."""
    pending: PendingFrames = PendingFrames(kind, StreamLimits(window=8))
    for number in range(min(answered, 7) + 1):
        pending.add(image_pb2.Image())
        pending.next_request()
        if kind.delivery == "ordered" and number < answered:
            error = status_pb2.Status(code=3)
            pending.answer(inference_pb2.ClassifyStreamResponse(frame_id=number, error=error))
    return pending


def replies(content: bytes) -> None:
    """Read a server's reply as the SDK does; a result, or an error of the SDK's own."""
    kind, content = content[:1], content[1:]
    with contextlib.suppress(DecodeError, Resnet50Error):  # malformed messages are gRPC's to refuse
        match kind:
            case b"\0":
                repr(_codec.classification(inference_pb2.ClassifyResponse.FromString(content)))
            case b"\1":
                found = _codec.embedding(inference_pb2.EmbedResponse.FromString(content))
                repr(found), found.cosine(found), np.asarray(found)
            case b"\2":
                message = inference_pb2.ClassifyStreamResponse.FromString(content)
                repr(_pending(_STREAMS[0], message.frame_id).answer(message))
            case b"\3":
                answer = inference_pb2.EmbedStreamResponse.FromString(content)
                repr(_pending(_STREAMS[1], answer.frame_id).answer(answer))
            case b"\4":
                for variant in variant_pb2.ListVariantsResponse.FromString(content).variants:
                    repr(_variant_codec.variant(variant))
            case b"\5":
                _require_error(error_of_status(status_pb2.Status.FromString(content)))
            case _:
                _require_error(error_of(_Failure(kind, content), "127.0.0.1:1", "; advice"))


class _Failure(grpc.RpcError):
    """A call that failed, with any details."""

    def __init__(self, kind: bytes, details: bytes) -> None:
        codes = list(grpc.StatusCode)
        self._code = codes[sum(kind) % len(codes)]
        self._details = details

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        return self._code

    def details(self) -> str:
        """Return the message."""
        return self._details[:100].decode(errors="replace")

    def trailing_metadata(self) -> Any:
        """Return what comes with it."""
        return (("grpc-status-details-bin", self._details), ("x-request-id", "1"))


def _require_error(error: object) -> None:
    if not isinstance(error, Resnet50Error):
        raise Finding(f"{error!r} is no error of the SDK")
    str(error), repr(error)


# Files of the server's operator: not hostile, but often broken

_temporary = tempfile.TemporaryDirectory(prefix="resnet50-fuzz-")
_folder = Path(_temporary.name)


def files(content: bytes) -> None:
    """Read a tokens file, a variant.json, a transform or a config file: its faults are said.

    A transform that is read is the same again once it is written into a variant.json.
    """
    kind, content = content[:1], content[1:]
    with contextlib.suppress(UnusableSetting, WeightsError):
        if kind == b"t":
            parse_tokens(Path("tokens.toml"), content)
        elif kind == b"v":
            (_folder / "variant.json").write_bytes(content)
            parse_variant(f"own={_folder}")
        elif kind == b"x":
            _read_again(parse_transform_text(content.decode(errors="replace")))
        else:
            config = _folder / "config.toml"
            config.write_bytes(content)
            # What `resnet50-server serve` says and exits with 2 for.
            with contextlib.suppress(ValidationError, SettingsError, ValueError):
                Settings(config=config)


def _read_again(transform: Transform) -> None:
    again = TransformFile.model_validate_json(json.dumps(transform_json(transform)))
    if again.to_transform() != transform:
        raise Finding(f"{transform} is {again.to_transform()} once it is written and read")


TARGETS: dict[str, Target] = {
    target.__name__: target for target in (images, raw, calls, replies, files)
}
# Of one input, in bytes.
MAX_LENGTHS = {"images": 8192, "raw": 512, "calls": 4096, "replies": 4096, "files": 2048}


def forget_environment() -> None:
    """Take settings of this shell away, which would be mixed with those of fuzzed files."""
    for name in [name for name in os.environ if name.startswith("RESNET50_")]:
        del os.environ[name]
