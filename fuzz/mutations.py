"""How files are broken: from bytes and a seeded `random.Random` to other bytes.

Beside changes that know nothing of what they change, there are those that know where a format keeps
its lengths, sides and counts, and which of its pieces could be missing, there twice or elsewhere.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Literal, NamedTuple, TypeAlias

Mutation: TypeAlias = Callable[[Random, bytes], bytes]

PNG, GIF = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a")
# Interesting values of a length or a side.
NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 1000, 4096, 32767, 32768, 65535, 65536, 100_000),
    *(2**24 - 1, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1),
)
# Pieces that are there fifty times may be again. Larger files try nothing but limits.
MAX_BYTES = 8 * 2**20


class Number(NamedTuple):
    """Where a file keeps one: offset, bytes, and their order as `int.from_bytes` calls it."""

    at: int
    size: int
    order: str = "big"


Piece: TypeAlias = tuple[int, int]
"""Where a part of a file begins and ends."""


def mutated(draw: Random, content: bytes, others: list[bytes]) -> bytes:
    """Return a file with one to four things wrong with it.

    Args:
        draw: Decides; the same one gives the same file.
        content: The file.
        others: Of which parts may get into this one.
    """
    for _ in range(draw.choice((1, 1, 2, 4))):
        if draw.random() < 0.1:
            content = spliced(draw, content, draw.choice(others))
        else:
            content = draw.choice((*ANYWHERE, *BY_FORMAT, *BY_FORMAT))(draw, content)
        content = content[:MAX_BYTES]
    if content.startswith(PNG) and draw.random() < 0.7:
        content = with_checksums(content)
    return content


# Mutations of any bytes


def _flip_bits(draw: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 4, 32))):
        if changed:
            changed[_place(draw, len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _set_bytes(draw: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 4, 20))):
        if changed:
            changed[_place(draw, len(changed))] = draw.choice(
                (0, 1, 127, 128, 255, draw.getrandbits(8))
            )
    return bytes(changed)


def _set_number(draw: Random, content: bytes) -> bytes:
    size = draw.choice((1, 2, 4))
    if len(content) < size:
        return content
    at = _place(draw, len(content) - size + 1)
    return _with_number(draw, content, Number(at, size, draw.choice(("big", "little"))))


def _truncate(draw: Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _remove(draw: Random, content: bytes) -> bytes:
    start, end = _slice(draw, content)
    return content[:start] + content[end:]


def _repeat(draw: Random, content: bytes) -> bytes:
    start, end = _slice(draw, content)
    return content[:start] + content[start:end] * draw.choice((2, 2, 3, 50)) + content[end:]


def _insert(draw: Random, content: bytes) -> bytes:
    at = _place(draw, len(content) + 1)
    return content[:at] + draw.randbytes(draw.choice((1, 4, 64, 1000))) + content[at:]


def _trail(draw: Random, content: bytes) -> bytes:
    return content + draw.choice((b"\0", b"\xff", draw.randbytes(8), content)) * draw.choice(
        (1, 100)
    )


def spliced(draw: Random, content: bytes, other: bytes) -> bytes:
    """Return the start of one and the end of another."""
    return content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other) + 1) :]


ANYWHERE: tuple[Mutation, ...] = (
    *(_flip_bits, _set_bytes, _set_number, _truncate, _remove, _repeat, _insert, _trail),
)


# Mutations of files of a format


def _lie(draw: Random, content: bytes) -> bytes:
    """Change a length, a side or a count."""
    where = [number for number in numbers_of(content) if number.at + number.size <= len(content)]
    return _with_number(draw, content, draw.choice(where)) if where else content


def _rearrange(draw: Random, content: bytes) -> bytes:
    """Leave a piece out, have it twice, or elsewhere."""
    pieces = pieces_of(content)
    if not pieces:
        return content
    start, end = draw.choice(pieces)
    piece, at = content[start:end], draw.choice(pieces)[0]
    match draw.randrange(3):
        case 0:
            return content[:start] + content[end:]
        case 1:
            return content[:at] + piece * draw.choice((1, 1, 30)) + content[at:]
        case _:
            left = content[:start] + content[end:]
            return left[:at] + piece + left[at:]


def _spoil(draw: Random, content: bytes) -> bytes:
    """Change what is in a piece; of a PNG's pixels what is in them once they are inflated."""
    pieces = pieces_of(content)
    if not pieces:
        return _flip_bits(draw, content)
    start, end = draw.choice(pieces)
    piece = content[start:end]
    if content.startswith(PNG) and piece[4:8] == b"IDAT":
        try:
            lines = zlib.decompress(piece[8:-4])
        except zlib.error:
            return content
        packed = zlib.compress(draw.choice(ANYWHERE)(draw, lines))
        piece = struct.pack(">I", len(packed)) + b"IDAT" + packed + bytes(4)
    else:
        piece = draw.choice((_flip_bits, _set_bytes))(draw, piece)
    return content[:start] + piece + content[end:]


BY_FORMAT: tuple[Mutation, ...] = (_lie, _rearrange, _spoil)


def numbers_of(content: bytes) -> list[Number]:
    """Return where a file keeps its lengths, sides and counts; as far as it can be followed."""
    if content.startswith(PNG):
        header = [Number(16, 4), Number(20, 4), *(Number(at, 1) for at in (24, 25, 28))]
        return header * 3 + [Number(start, 4) for start, _ in pieces_of(content)]
    if content.startswith(b"\xff\xd8"):
        found = []
        for start, _ in pieces_of(content):
            found.append(Number(start + 2, 2))
            if content[start + 1 : start + 2] in (b"\xc0", b"\xc1", b"\xc2"):
                found += [Number(start + 5, 2), Number(start + 7, 2)] * 3
                found += [Number(start + at, 1) for at in (4, 9, 10, 11, 12, 14, 17)]
        return found
    if content[8:12] == b"WEBP":
        found = [Number(4, 4, "little")]
        for start, _ in pieces_of(content):
            found.append(Number(start + 4, 4, "little"))
            sides = {b"VP8X": (12, 15), b"VP8 ": (14, 16), b"VP8L": (9, 11), b"ANMF": (14, 17)}
            for at in sides.get(content[start : start + 4], ()):
                found += [Number(start + at, 2, "little")] * 3
        return found
    if content.startswith(GIF):
        found = [Number(6, 2, "little"), Number(8, 2, "little"), Number(10, 1)]
        for start, _ in pieces_of(content):
            if content[start : start + 1] == b",":
                found += [Number(start + at, 2, "little") for at in (1, 3, 5, 7)]
                found += [Number(start + at, 1) for at in (9, 10, 11)]
            else:
                found += [Number(start + at, 1) for at in (1, 2, 3)]
        return found
    if content.startswith(b"BM"):
        longs = (2, 10, 14, 18, 18, 18, 22, 22, 22, 30, 34, 46, 50, 54, 58, 62)
        return [Number(at, 4, "little") for at in longs] + [Number(28, 2, "little")]
    if content[:2] in (b"II", b"MM"):
        order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
        found = [Number(4, 4, order)]
        for start, _ in pieces_of(content):
            parts = ((0, 2), (2, 2), (4, 4), (8, 4), (8, 2))
            found += [Number(start + at, size, order) for at, size in parts]
        return found
    return []


def pieces_of(content: bytes) -> list[Piece]:
    """Return the chunks, segments, blocks or tags of a file, as far as it can be followed."""
    for start, walk in (
        (content.startswith(PNG), _png_chunks),
        (content.startswith(b"\xff\xd8"), _jpeg_segments),
        (content[8:12] == b"WEBP", _webp_chunks),
        (content.startswith(GIF), _gif_blocks),
        (content[:2] in (b"II", b"MM"), _tiff_tags),
    ):
        if start:
            found = []
            for number, piece in enumerate(walk(content)):
                if number == 200 or piece[1] > len(content):
                    break
                found.append(piece)
            return found
    return []


def _png_chunks(content: bytes) -> Iterator[Piece]:
    at = len(PNG)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        yield at, end
        at = end


def _jpeg_segments(content: bytes) -> Iterator[Piece]:
    """Give the segments; the last one, which begins a scan, with all that follows."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        scan = content[at + 1] == 0xDA
        end = len(content) if scan else at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        yield at, end
        at = end


def _webp_chunks(content: bytes) -> Iterator[Piece]:
    at = 12
    while at + 8 <= len(content):
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        yield at, end
        at = end


def _gif_blocks(content: bytes) -> Iterator[Piece]:
    flags = content[10] if len(content) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while at + 10 < len(content) and content[at] in b"!,":
        end = at + 2
        if content[at : at + 1] == b",":
            local = content[at + 9]
            end = at + 11 + (3 << (local & 7) + 1 if local & 128 else 0)
        while end < len(content) and content[end]:
            end += 1 + content[end]
        yield at, end + 1
        at = end + 1


def _tiff_tags(content: bytes) -> Iterator[Piece]:
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    start = int.from_bytes(content[4:8], order)
    count = int.from_bytes(content[start : start + 2], order)
    for number in range(count):
        yield start + 2 + 12 * number, start + 14 + 12 * number


def with_checksums(content: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums that they should have."""
    changed = bytearray(content)
    for start, end in _png_chunks(content):
        if end > len(content):
            break
        struct.pack_into(">I", changed, end - 4, zlib.crc32(content[start + 4 : end - 4]))
    return bytes(changed)


# Choices


def _place(draw: Random, length: int) -> int:
    """Return a place in a file; half of them among the first bytes, where headers are."""
    return draw.randrange(min(length, 64) if draw.random() < 0.5 else length)


def _slice(draw: Random, content: bytes) -> Piece:
    start = draw.randrange(len(content) + 1)
    return start, min(len(content), start + draw.choice((1, 2, 4, 16, 64, 1000)))


def _with_number(draw: Random, content: bytes, where: Number) -> bytes:
    order: Literal["little", "big"] = "big" if where.order == "big" else "little"
    end = where.at + where.size
    old = int.from_bytes(content[where.at : end], order)
    value = draw.choice((*NUMBERS, old + 1, old - 1, 2 * old, old // 2, len(content)))
    packed = (value % 2 ** (8 * where.size)).to_bytes(where.size, order)
    return content[: where.at] + packed + content[end:]
