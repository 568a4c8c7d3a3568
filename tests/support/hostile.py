"""Files and messages that attack a decoder, each built from the format's own parts."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.support.pictures import encode, photo_like, picture

MIB = 2**20

# PNG


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(
    width: int,
    height: int,
    *extra: bytes,
    lines: bytes = b"",
    depth: int = 8,
    colour: int = 2,
    interlaced: bool = False,
) -> bytes:
    """Return a PNG of these parts; its lines need not fit its size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(lines, 9))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def png_text_bomb(kind: bytes, chunks: int, length: int) -> bytes:
    """Return a PNG whose text or profile expands to `chunks` x `length` bytes."""
    packed = zlib.compress(bytes(length), 9)
    content = {
        b"zTXt": lambda number: b"k%d\0\0" % number + packed,
        b"iTXt": lambda number: b"k%d\0\1\0\0\0" % number + packed,
        b"iCCP": lambda number: b"profile\0\0" + packed,
    }[kind]
    extra = [chunk(kind, content(number)) for number in range(chunks)]
    return png(8, 8, *extra, lines=bytes(25 * 8))


def png_of_chunks(count: int) -> bytes:
    """Return a PNG with very many empty chunks before its pixels."""
    return png(8, 8, *[chunk(b"teSt", b"")] * count, lines=bytes(25 * 8))


# JPEG


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(*segments: bytes, side: int = 64) -> bytes:
    """Return a JPEG with more segments after its start."""
    whole = encode(photo_like(side, side), "JPEG")
    return whole[:2] + b"".join(segments) + whole[2:]


def jpeg_of(width: int, height: int) -> bytes:
    """Return a JPEG that declares another size than its content has."""
    whole = bytearray(encode(photo_like(64, 64), "JPEG"))
    at = whole.index(b"\xff\xc0")
    whole[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(whole)


def progressive(width: int, height: int, scans: int) -> bytes:
    """Return a JPEG whose last scan is there again and again."""
    whole = encode(photo_like(width, height), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * (scans - whole.count(b"\xff\xda") + 1) + b"\xff\xd9"


def pictures_that_share(count: int, length: int) -> bytes:
    """Return a JPEG that says (MPF) that there are further pictures, in fractions that are one."""
    tags = [(0xB000 + number, RATIONAL, length // 8, 8) for number in range(count)]
    return with_segments(segment(0xE2, b"MPF\0" + exif(*tags, padding=length - 12 * count)))


def scans_of_one_component(count: int) -> bytes:
    """Return a JPEG, not progressive, which gives one of its three components again and again."""
    whole = encode(photo_like(64, 64), "JPEG")
    header = whole.index(b"\xff\xda")
    scan = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + whole[header + 14 : -2]
    return whole[:header] + scan * count + b"\xff\xd9"


def empty_scans(count: int) -> bytes:
    """Return a progressive JPEG with very many scans without data."""
    whole = encode(photo_like(64, 64), "JPEG", progressive=True)
    at = whole.index(b"\xff\xda")
    return whole[:at] + b"\xff\xda\0\x08\x01\x01\0\0\0\0" * count + b"\xff\xd9"


def segments_between_scans(count: int) -> bytes:
    """Return a progressive JPEG with very many segments behind its first scan."""
    whole = encode(photo_like(64, 64), "JPEG", progressive=True)
    at = whole.index(b"\xff\xc4", whole.index(b"\xff\xda"))
    return whole[:at] + segment(0xE1, b"") * count + whole[at:]


def marker_flood(marker: bytes, count: int) -> bytes:
    """Return a progressive JPEG whose first scan is a marker again and again, and the last."""
    whole = encode(photo_like(64, 64), "JPEG", progressive=True)
    at = whole.index(b"\xff\xda")
    header = 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
    return whole[: at + header] + marker * count


def profile(length: int) -> Iterator[bytes]:
    """Give the segments of a colour profile."""
    parts = [bytes(65519)] * (length // 65519)
    for number, part in enumerate(parts, 1):
        yield segment(0xE2, b"ICC_PROFILE\0" + bytes([number % 256, len(parts) % 256]) + part)


# TIFF and EXIF


def directory(
    tags: list[tuple[int, int, int, int]], start: int = 8, following: int = 0, order: str = "<"
) -> bytes:
    """Return a TIFF directory; a tag is (number, type, count, value or offset)."""
    entries = b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    return struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following)


SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 3, 4, 5, 7, 16


def tiff(
    width: int,
    height: int,
    *extra: tuple[int, int, int, int],
    content: bytes = b"",
    compression: int = 1,
    rows: int | None = None,
    counts: list[int] | None = None,
    offsets: list[int] | None = None,
    following: int = 0,
) -> bytes:
    """Return a grey TIFF of one strip unless it has `counts` and `offsets`."""
    own = [
        (256, LONG, 1, width),
        (257, LONG, 1, height),
        (258, SHORT, 1, 8),
        (259, SHORT, 1, compression),
        (262, SHORT, 1, 1),
        (277, SHORT, 1, 1),
        (278, LONG, 1, rows or height),
    ]
    at = 8 + 2 + 12 * (len(own) + 2 + len(extra)) + 4
    tables = b""
    if counts is None or offsets is None:
        own += [(273, LONG, 1, at), (279, LONG, 1, len(content))]
    else:
        behind = at + 8 * len(counts)
        tables = struct.pack(f"<{len(offsets)}I", *(behind + offset for offset in offsets))
        tables += struct.pack(f"<{len(counts)}I", *counts)
        own += [
            (273, LONG, len(offsets), at),
            (279, LONG, len(counts), at + 4 * len(offsets)),
        ]
    tags = sorted([*own, *extra])
    return b"II*\0\x08\0\0\0" + directory(tags, following=following) + tables + content


def tags_that_share(count: int, length: int) -> list[tuple[int, int, int, int]]:
    """Return tags which all say that the same bytes, from the 8th, are theirs."""
    return [(1000 + number, UNDEFINED, length, 8) for number in range(count)]


def numbers_that_share(count: int, length: int) -> list[tuple[int, int, int, int]]:
    """Return the same of numbers of 8 bytes, which are BigTIFF's."""
    return [(1000 + number, LONG8, length // 8, 8) for number in range(count)]


def exif(*tags: tuple[int, int, int, int], padding: int = 0) -> bytes:
    return b"II*\0\x08\0\0\0" + directory(list(tags)) + bytes(padding)


def empty_blocks(length: int) -> bytes:
    """Return a zlib stream that is long and says almost nothing: empty stored blocks."""
    return b"\x78\x01" + b"\0\0\0\xff\xff" * (length // 5)


def strips_that_share(strips: int, length: int) -> bytes:
    """Return a TIFF whose strips are all the same long stream, inflated again for each."""
    row = bytes(64)
    stream = empty_blocks(length) + zlib.compress(row)[2:]
    return tiff(
        64,
        strips,
        content=stream,
        compression=8,
        rows=1,
        counts=[len(stream)] * strips,
        offsets=[0] * strips,
    )


# GIF


def gif(
    width: int,
    height: int,
    *blocks: bytes,
    frame: tuple[int, int] | None = None,
    end: bytes = b"\x02\x02\x44\x01\0;",
) -> bytes:
    """Return a GIF with these blocks before its first frame."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    shown = frame or (width, height)
    return screen + b"".join(blocks) + b"," + struct.pack("<HHHHB", 0, 0, *shown, 0) + end


def gif_comment(blocks: int, length: int = 1) -> bytes:
    """Return a comment of very many blocks."""
    return b"!\xfe" + (bytes([length]) + b"c" * length) * blocks + b"\0"


# WebP and BMP


def webp_canvas(width: int, height: int) -> bytes:
    """Return a WebP that declares a large canvas around a small picture."""
    inner = encode(picture(16, 16), "WEBP", lossless=True)[12:]
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + sides
    still = struct.pack("<I", 15)[:3] * 2
    frame = b"\0\0\0\0\0\0" + still + b"\x64\0\0" + b"\0" + inner
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int, content: bytes = b"", compression: int = 0) -> bytes:
    """Return an 8-bit BMP; compression 1 is run-length."""
    palette = bytes(4 * 256)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 256, 0)
    start = 14 + len(info) + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start)
    return head + info + palette + content


def many_frames(form: str, frames: int) -> bytes:
    """Return an animation."""
    pictures = [Image.new("RGB", (16, 16), (n % 256, n // 256, 0)) for n in range(frames)]
    return encode(pictures[0], form, save_all=True, append_images=pictures[1:])


def deep_groups(depth: int) -> bytes:
    """Return a protobuf message of groups within groups, none of which is closed."""
    return b"\x0b" * depth


def nested(depth: int, field: int = 1) -> bytes:
    """Return messages within messages."""
    tag = bytes([field << 3 | 2])
    content = b""
    for _ in range(depth):
        length, value = b"", len(content)
        while value > 127:
            length += bytes([value & 127 | 128])
            value >>= 7
        content = tag + length + bytes([value]) + content
    return content


def mutated(content: bytes, seed: int) -> bytes:
    """Return a file with some of its bytes changed."""
    draw, changed = random.Random(seed), bytearray(content)
    for _ in range(1 + draw.randrange(20)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def deflated_zeros(length: int) -> bytes:
    """Return a gzip stream of `length` zeros."""
    out, packer = io.BytesIO(), zlib.compressobj(9, zlib.DEFLATED, 31)
    for _ in range(length // MIB):
        out.write(packer.compress(bytes(MIB)))
    out.write(packer.flush())
    return out.getvalue()
