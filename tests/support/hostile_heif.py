"""HEIC and AVIF files that attack a decoder, each built from the format's own boxes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.support import hostile

Size = tuple[int, int]


@dataclass
class Item:
    """An item of a file: its type, content and declared size, and what it refers to."""

    kind: bytes
    content: bytes = b""
    size: Size | None = None
    configuration: bytes = b""
    references: list[tuple[bytes, list[int]]] = field(default_factory=list)
    extents: list[tuple[int, int]] | None = None
    more: tuple[bytes, ...] = ()


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full(kind: bytes, version: int, *parts: bytes, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def ispe(size: Size) -> bytes:
    return full(b"ispe", 0, struct.pack(">II", *size))


def heif(
    items: list[Item],
    *compatible: bytes,
    major: bytes = b"avif",
    before: bytes = b"",
    primary: int | None = 1,
    inside: bytes = b"",
    beside: bytes = b"",
) -> bytes:
    """Return a file of items, numbered from 1.

    Args:
        items: Its items.
        compatible: Brands behind the major one.
        major: The major brand.
        before: Boxes before the list of items.
        primary: The number of the primary item.
        inside: Boxes at the end of the list of items.
        beside: Boxes behind the list of properties.
    """
    start = box(b"ftyp", major, bytes(4), *compatible) + before
    properties: list[bytes] = []
    associations = b""
    for number, item in enumerate(items, 1):
        own = [ispe(item.size)] if item.size else []
        own += [item.configuration] if item.configuration else []
        own += item.more
        first = len(properties) + 1
        properties += own
        indices = struct.pack(f">{len(own)}H", *range(first, first + len(own)))
        associations += struct.pack(">HB", number, len(own)) + indices
    kinds = b"".join(
        full(b"infe", 2, struct.pack(">HH4s", number, 0, item.kind), b"\0")
        for number, item in enumerate(items, 1)
    )
    references = b"".join(
        box(kind, struct.pack(f">HH{len(others)}H", number, len(others), *others))
        for number, item in enumerate(items, 1)
        for kind, others in item.references
    )
    parts = [
        full(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
        *([full(b"pitm", 0, struct.pack(">H", primary))] if primary is not None else []),
        full(b"iinf", 0, struct.pack(">H", len(items)), kinds),
        box(
            b"iprp",
            box(b"ipco", *properties),
            beside,
            full(b"ipma", 0, struct.pack(">I", len(items)), associations, flags=1),
        ),
        *([full(b"iref", 0, references)] if references else []),
    ]

    def meta(at: int) -> bytes:
        entries, offset = b"", at
        for number, item in enumerate(items, 1):
            extents = item.extents or [(offset, len(item.content))]
            if item.extents is None:
                offset += len(item.content)
            entries += struct.pack(">HHH", number, 0, len(extents))
            entries += b"".join(struct.pack(">II", *extent) for extent in extents)
        iloc = full(b"iloc", 0, b"\x44\x00", struct.pack(">H", len(items)), entries)
        return full(b"meta", 0, *parts, iloc, inside)

    at = len(start) + len(meta(0)) + 8
    return start + meta(at) + box(b"mdat", *(item.content for item in items))


def _packed(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def obu(kind: int, content: bytes) -> bytes:
    """Return an AV1 unit with its size."""
    length, rest = b"", len(content)
    while rest > 127:
        length += bytes([rest & 127 | 128])
        rest >>= 7
    return bytes([kind << 3 | 2]) + length + bytes([rest]) + content


def av1(size: Size, frames: int = 1, *, own_size: bool = False) -> bytes:
    """Return an AV1 picture that gives this size in its sequence header, and holds no pixels.

    Args:
        size: Width and height, up to 65536.
        frames: How many it has.
        own_size: Whether frames say that they have a size of their own.
    """
    sides = f"{15:04b}{15:04b}{size[0] - 1:016b}{size[1] - 1:016b}"
    if not own_size:
        return obu(1, _packed("0001100000" + sides + "0" * 16)) + obu(6, bytes(4)) * frames
    # Not a still picture: no timing, no display delay, one operating point.
    header = "000000000000" + "0" * 12 + "00000" + sides
    # No frame numbers, no tools, no order; screen content and integer motion chosen by frames.
    header += "0" + "0" * 7 + "0" + "1" + "1" + "0" * 16
    # Shown key frame, no screen content, a size of its own.
    frame = "0001001" + "0" * 25
    return obu(1, _packed(header)) + obu(6, _packed(frame)) * frames


def _exp_golomb(number: int) -> str:
    digits = f"{number + 1:b}"
    return "0" * (len(digits) - 1) + digits


def _escaped(unit: bytes) -> bytes:
    out, zeros = bytearray(), 0
    for byte in unit:
        if zeros == 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)


def hevc_parameters(size: Size, sub_layers: int = 0, *, zeros: bool = False) -> bytes:
    """Return a sequence parameter set; with `zeros`, two zero bytes begin within its header."""
    nesting = "0" if zeros else "1"
    bits = "0000" + f"{sub_layers:03b}" + nesting + "0" * 88 + f"{93:08b}"
    bits += "11" * sub_layers + ("00" * (8 - sub_layers) if sub_layers else "")
    bits += ("0" * 88 + f"{93:08b}") * sub_layers
    bits += _exp_golomb(0) + _exp_golomb(1) + _exp_golomb(size[0]) + _exp_golomb(size[1]) + "1"
    return _escaped(bytes([33 << 1, 0 if zeros else 1]) + _packed(bits))


def hvcc(*parameter_sets: bytes) -> bytes:
    """Return the configuration of an HEVC picture, whose units have lengths of 4 bytes."""
    arrays = b"".join(
        struct.pack(">BHH", 0x80 | 33, 1, len(unit)) + unit for unit in parameter_sets
    )
    return box(b"hvcC", b"\1" + bytes(20) + b"\3" + bytes([len(parameter_sets)]) + arrays)


def slices(count: int) -> bytes:
    """Return as many pictures, which hold no pixels."""
    unit = bytes([19 << 1, 1, 0x80, 0, 0])
    return (struct.pack(">I", len(unit)) + unit) * count


def avif(declared: Size, coded: Size, frames: int = 1, **of: bool) -> bytes:
    """Return an AVIF of one picture."""
    return heif([Item(b"av01", av1(coded, frames, **of), declared)], b"mif1", b"miaf")


def heic(declared: Size, coded: Size, pictures: int = 1) -> bytes:
    """Return a HEIC of one picture."""
    item = Item(b"hvc1", slices(pictures), declared, hvcc(hevc_parameters(coded)))
    return heif([item], b"mif1", b"heic", major=b"heic")


def grid_content(size: Size, rows: int, columns: int, flags: int = 0) -> bytes:
    return struct.pack(">BBBBHH", 0, flags, rows - 1, columns - 1, *size)


def alpha_of(number: int, size: Size) -> Item:
    """Return the alpha of another item."""
    kind = full(b"auxC", 0, b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
    return Item(b"av01", av1(size), size, kind, references=[(b"auxl", [number])])


def avif_grid(declared: Size, output: Size, tile: Size, tiles: int) -> bytes:
    """Return an AVIF whose grid uses the same tile again and again."""
    grid = Item(b"grid", grid_content(output, 1, 1), declared, references=[(b"dimg", [2] * tiles)])
    return heif([grid, Item(b"av01", av1(tile), tile)], b"mif1")


def exif_that_shares(declared: Size) -> bytes:
    """Return an AVIF with EXIF tags that all claim the same bytes."""
    exif = bytes(4) + hostile.exif(*hostile.tags_that_share(2700, 32_000))
    picture = Item(b"av01", av1(declared), declared)
    return heif([picture, Item(b"Exif", exif, references=[(b"cdsc", [1])])], b"mif1")


def pictures_that_share(declared: Size, count: int) -> bytes:
    """Return an AVIF whose items all claim the bytes of the whole file."""
    picture = Item(b"av01", av1(declared), declared)
    others = [Item(b"av01", b"", declared, extents=[(0, 2000)]) for _ in range(count)]
    return heif([picture, *others], b"mif1")
