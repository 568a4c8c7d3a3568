"""Images to mutate: sound files of every format, raw pixels, preprocessed ones; all made here."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_server.images.transform import Transform
from tests.support import hostile, hostile_heif
from tests.support.pictures import encode, heic, photo_like, picture


def without_times(content: bytes) -> bytes:
    """Return an ISO media file with creation times of 0, so that it is the same each time."""
    changed = bytearray(content)
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        at = content.find(box) + 4
        changed[at + 4 : at + 4 + (16 if content[at] else 8)] = bytes(16 if content[at] else 8)
    return bytes(changed)


def images(side: int = 24) -> dict[str, bytes]:
    """Return files of every format and of most of its kinds, by what they are.

    Args:
        side: Their width in pixels; they are two thirds as high.
    """
    wide, high = side, side * 2 // 3
    photo, drawn = photo_like(wide, high), picture(wide, high)
    clear = drawn.convert("RGBA")
    clear.putalpha(photo.convert("L"))
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    palette = drawn.quantize(16)
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"

    def film() -> dict[str, Any]:  # made anew, as saving leaves traces in pictures
        return {"save_all": True, "append_images": [photo_like(wide, high, 1), drawn.copy()]}

    profile = encode_profile()
    made = {
        "jpeg": encode(photo, "JPEG"),
        "jpeg grey": encode(photo.convert("L"), "JPEG"),
        "jpeg cmyk": encode(photo.convert("CMYK"), "JPEG"),
        "jpeg progressive": encode(photo, "JPEG", progressive=True, subsampling=0),
        "jpeg exif": encode(photo, "JPEG", exif=exif, icc_profile=profile, comment=b"hello"),
        "jpeg restarts": encode(photo, "JPEG", restart_marker_rows=1),
        "jpeg mpo": encode(photo, "MPO", **film()),
        "jpeg without an end": encode(photo, "JPEG")[:-2],
        "jpeg progressive without an end": encode(photo, "JPEG", progressive=True)[:-2] + b"\0\0",
        "jpeg before a video": encode(photo, "JPEG") + b"\0\0\0\x18ftypmp42\xff\xda\xff\xd9",
        "jpeg behind padding": b"\0\r\n\xff" + encode(photo, "JPEG"),
        "jpeg with a thumbnail": hostile.with_segments(
            hostile.segment(0xE2, encode(photo, "JPEG", progressive=True)), side=24
        ),
        # Decoded at a half of its size.
        "jpeg large": encode(Image.new("RGB", (288, 288), (9, 99, 200)), "JPEG"),
        "jpeg large progressive": encode(
            Image.new("RGB", (300, 290), (9, 99, 200)), "JPEG", progressive=True
        ),
        "png": encode(photo),
        "png grey": encode(photo.convert("L")),
        "png grey alpha": encode(clear.convert("LA")),
        "png alpha": encode(clear),
        "png palette": encode(palette, transparency=b"\0\x80"),
        "png 1 bit": encode(drawn.convert("1")),
        "png 16 bits": encode(deep),
        "png interlaced": hostile.png(wide, high, lines=bytes(4 * wide * high), interlaced=True),
        "png 16 bits rgb": hostile.png(8, 8, lines=bytes(49 * 8), depth=16),
        "png exif": encode(photo, exif=exif, icc_profile=profile),
        "png text": hostile.png(
            *(8, 8),
            hostile.chunk(b"tEXt", b"Comment\0hello"),
            hostile.chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"hello")),
            hostile.chunk(b"iTXt", b"Comment\0\0\0en\0\0hello"),
            hostile.chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\n49492a00"),
            hostile.chunk(b"tRNS", bytes(6)),
            hostile.chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
            hostile.chunk(b"gAMA", struct.pack(">I", 45455)),
            lines=bytes(25 * 8),
        ),
        "png animated": encode(photo, **film()),
        "webp": encode(photo, "WEBP"),
        "webp lossless": encode(drawn, "WEBP", lossless=True),
        "webp alpha": encode(clear, "WEBP", exif=exif, icc_profile=profile),
        "webp animated": encode(photo, "WEBP", **film()),
        "gif": encode(palette, "GIF"),
        "gif transparent": encode(palette, "GIF", transparency=0, comment=b"hello"),
        "gif animated": encode(drawn, "GIF", **film(), disposal=2, loop=0),
        "gif interlaced": encode(drawn.convert("L"), "GIF", interlace=True),
        "gif of a corner": hostile.gif(wide, high, frame=(2, 2)),
        "avif": encode(photo, "AVIF"),
        "avif grey": encode(photo.convert("L"), "AVIF"),
        "avif alpha": encode(clear, "AVIF", exif=exif, icc_profile=profile),
        "avif animated": without_times(encode(photo, "AVIF", **film())),
        "heic": heic(photo),
        "heic alpha": heic(clear),
        "heic exif": heic(photo, exif=exif.tobytes()),
        "avif of a larger picture": hostile_heif.avif((wide, high), (2048, 2048)),
        "heic of a larger picture": hostile_heif.heic((wide, high), (2048, 2048)),
        "bmp": encode(photo, "BMP"),
        "bmp grey": encode(photo.convert("L"), "BMP"),
        "bmp alpha": encode(clear, "BMP"),
        "bmp 1 bit": encode(drawn.convert("1"), "BMP"),
        "bmp runs": hostile.bmp(8, 8, b"\x08\1\0\0" * 7 + b"\0\3\1\2\3\0\5\1\0\1", 1),
        "bmp runs of 4 bits": _bmp_of_4_bits(),
        "tiff": encode(photo, "TIFF"),
        "tiff lzw": encode(photo, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encode(clear, "TIFF", compression="tiff_deflate"),
        "tiff jpeg": encode(photo, "TIFF", compression="jpeg"),
        "tiff packbits": encode(drawn.convert("L"), "TIFF", compression="packbits"),
        "tiff fax": encode(drawn.convert("1"), "TIFF", compression="group4"),
        "tiff palette": encode(palette, "TIFF"),
        "tiff 16 bits": encode(deep, "TIFF"),
        "tiff floats": encode(drawn.convert("F"), "TIFF"),
        "tiff cmyk": encode(photo.convert("CMYK"), "TIFF", compression="lzma"),
        "tiff pages": encode(photo, "TIFF", **film()),
        "tiff strips": hostile.tiff(
            8, 8, content=bytes(64), rows=4, counts=[32, 32], offsets=[0, 32]
        ),
        "tiff exif": encode(photo, "TIFF", exif=exif, icc_profile=profile),
        "tiff 10 bits": _tiff_of_depth(10, 0),
        "tiff 12 bits": _tiff_of_depth(12, 1),
        "tiff 14 bits": _tiff_of_depth(14, 1),
        "bigtiff": encode(photo, "TIFF", big_tiff=True),
        "tiff of the other order": b"MM\0*\0\0\0\x08" + _big_tiff(),
    }
    return made


def encode_profile() -> bytes:
    """Return a colour profile of little more than its header."""
    return struct.pack(">I", 132) + bytes(32) + b"acsp" + bytes(92)


def _bmp_of_4_bits() -> bytes:
    whole = bytearray(hostile.bmp(8, 8, b"\x08\x12\0\0" * 8 + b"\0\1", 2))
    whole[28] = 4
    return bytes(whole)


def _tiff_of_depth(bits: int, photometric: int) -> bytes:
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, bits), (259, 3, 1, 1), (277, 3, 1, 1)]
    at = 8 + 2 + 12 * 9 + 4
    tags += [(262, 3, 1, photometric), (273, 4, 1, at), (278, 4, 1, 8), (279, 4, 1, 8 * bits)]
    return b"II*\0\x08\0\0\0" + hostile.directory(sorted(tags)) + bytes(range(8 * bits))


def _big_tiff() -> bytes:
    numbers = [(256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    tags = [(number, kind, 1, value << 16) for number, kind, value in numbers]
    at = 8 + 2 + 12 * 9 + 4
    tags += [(273, 4, 1, at), (278, 4, 1, 8), (279, 4, 1, 64)]
    return hostile.directory(sorted(tags), order=">") + bytes(range(64))


def raw_images() -> dict[str, image_pb2.RawImage]:
    """Return raw images of every pixel format, packed and with padded rows."""
    made = {}
    for name, pixel_format in image_pb2.PixelFormat.items():
        if pixel_format == image_pb2.PIXEL_FORMAT_UNSPECIFIED:
            continue
        row = 8 * {"RGB": 3, "BGR": 3, "RGBA": 4}.get(name.removeprefix("PIXEL_FORMAT_"), 1)
        planar = name.endswith(("NV12", "I420"))
        for padding in (0, 4):
            rows = 6 * 3 // 2 if planar else 6
            made[f"{name} padded by {padding}"] = image_pb2.RawImage(
                width=8,
                height=6,
                pixel_format=pixel_format,
                row_stride_bytes=row + padding if padding else 0,
                pixels=bytes(number % 251 for number in range(rows * (row + padding))),
            )
            if planar and padding:
                made[f"{name} in BT.709, full range"] = _in_bt709(made[f"{name} padded by 4"])
    return made


def _in_bt709(raw: image_pb2.RawImage) -> image_pb2.RawImage:
    other = image_pb2.RawImage()
    other.CopyFrom(raw)
    other.color_matrix = image_pb2.COLOR_MATRIX_BT709
    other.color_range = image_pb2.COLOR_RANGE_FULL
    return other


def preprocessed() -> image_pb2.Image:
    """Return an image that the caller has preprocessed for the variant `tiny`."""
    transform = Transform(resize=36, crop=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    pixels = np.asarray(photo_like(32, 32)).tobytes()
    fields = image_pb2.PreprocessedImage(pixels=pixels, transform_digest=transform.digest)
    return image_pb2.Image(preprocessed=fields)


def wrong_preprocessed() -> list[tuple[inference_pb2.ClassifyOptions, image_pb2.Image]]:
    """Return preprocessed images of which one thing is wrong, each with the options of its call."""
    sound = preprocessed().preprocessed
    wrong = [
        *((b"", sound.transform_digest), (sound.pixels[:-1], sound.transform_digest)),
        *((sound.pixels, ""), (sound.pixels, "0" * 64), (sound.pixels, "x" * 100)),
    ]
    made = [
        (
            inference_pb2.ClassifyOptions(),
            image_pb2.Image(
                preprocessed=image_pb2.PreprocessedImage(pixels=pixels, transform_digest=digest)
            ),
        )
        for pixels, digest in wrong
    ]
    return [*made, (inference_pb2.ClassifyOptions(background="white"), preprocessed())]


def wrong_raw_images() -> list[image_pb2.RawImage]:
    """Return raw images of which one number is wrong, and the pixels are as many as it says."""
    wrong: list[dict[str, Any]] = [
        *({"width": 0}, {"height": 0}, {"width": 65536, "height": 1}, {"width": 65535}),
        *({"row_stride_bytes": 1}, {"pixel_format": 0}, {"pixel_format": 7}),
        *({"pixel_format": 5, "width": 3}, {"pixel_format": 6, "height": 3}),
        *({"color_matrix": 1}, {"color_range": 1}, {"color_matrix": 9}, {"color_range": 9}),
    ]
    made = []
    for fields in wrong:
        sound = {"width": 8, "height": 6, "pixel_format": image_pb2.PIXEL_FORMAT_RGB}
        raw = image_pb2.RawImage(**(sound | fields))
        length = raw.height * (raw.row_stride_bytes or 3 * raw.width)
        raw.pixels = bytes(length)
        made.append(raw)
    return made
