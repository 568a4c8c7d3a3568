"""The boxes of HEIC and AVIF files (ISO/IEC 14496-12 and 23008-12), as far as guards need them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from resnet50_server.errors import InvalidImage

from .decode_guard import FIELD

# A photo of 50 million pixels in tiles of 512 x 512 has 200 items; libheif takes 1,000.
MAX_ITEMS = 1_000
# Boxes, their entries, and units of coded pictures: an item has about ten of them.
MAX_STEPS = 40_000


class StepLimit:
    """Counts the steps of reading a file.

    Args:
        steps: How many there may be.
    """

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self._left = steps

    def count(self, steps: int = 1) -> None:
        """Count steps.

        Raises:
            InvalidImage: There are too many.
        """
        self._left -= steps
        if self._left < 0:
            raise InvalidImage(
                FIELD,
                f"has more than {MAX_STEPS} boxes, entries and coded units; save it anew as one"
                " picture without metadata",
                kind="too_complex",
            )


@dataclass
class Item:
    """A picture of a file, or a part of one.

    Attributes:
        kind: Its type: b"hvc1", b"av01", b"grid" ...
        extents: Where its content is: from where to where in the file.
        properties: Its properties, as (type, content).
        parts: The items that it is made of, in their order; one may be there again and again.
        auxiliary: The items that hold its alpha, or other pictures that belong to it.
    """

    kind: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    auxiliary: list[int] = field(default_factory=list)

    def read_property(self, kind: bytes) -> bytes | None:
        """Return the content of a property, or None.

        Raises:
            InvalidImage: There are two of it, of which decoders may take either.
        """
        found = [content for name, content in self.properties if name == kind]
        if len(found) > 1:
            raise _broken(f"a picture has {len(found)} properties of type {kind.decode()}")
        return found[0] if found else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height as declared (ispe), or None."""
        content = self.read_property(b"ispe")
        if content is None or len(content) < 12:
            return None
        width, height = struct.unpack_from(">II", content, 4)
        return width, height


@dataclass
class Pictures:
    """The items of a file.

    Attributes:
        primary: The number of the picture to show; None if there is none.
        items: By their numbers.
    """

    primary: int | None
    items: dict[int, Item]


def read_pictures(content: bytes, limit: StepLimit) -> Pictures | None:
    """Return the items of a file; None if the box that lists them is not there, or not whole.

    Args:
        content: The file, or the beginning of it.
        limit: Counts boxes and entries.

    Raises:
        InvalidImage: There are too many, or they contradict each other.
    """
    boxes = _Boxes(content, limit)
    lists = [(start, end) for kind, start, end in boxes.within(0, len(content)) if kind == b"meta"]
    if not lists or lists[0][1] > len(content):
        return None
    if len(lists) > 1:
        raise _broken("it has two lists of pictures")
    ((start, end),) = lists
    try:
        return _read_meta(boxes, start + 4, end)
    except (struct.error, IndexError) as error:
        raise _broken("its list of pictures ends early") from error


def _broken(detail: str) -> InvalidImage:
    return InvalidImage(FIELD, f"is truncated or broken: {detail}; send the whole file")


class _Boxes:
    """Walks the boxes of a file.

    Args:
        content: The file, or the beginning of it.
        limit: Counts boxes.
    """

    def __init__(self, content: bytes, limit: StepLimit) -> None:
        self.content = content
        self.count = limit.count

    def within(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield each box as (type, start of its content, end); the end may be beyond the file."""
        while start + 8 <= min(end, len(self.content)):
            self.count()
            length, kind = struct.unpack_from(">I4s", self.content, start)
            header = 8
            if length == 1 and start + 16 <= len(self.content):
                (length,) = struct.unpack_from(">Q", self.content, start + 8)
                header = 16
            elif length == 0:  # to the end of the file, which may not have arrived: media only
                length = max(end, len(self.content) + 1) - start
            if length < header:
                return
            yield kind, start + header, start + length
            start += length


def _read_meta(boxes: _Boxes, start: int, end: int) -> Pictures:
    content = boxes.content
    pictures = Pictures(None, {})
    found: dict[bytes, tuple[int, int]] = {}
    for kind, begin, stop in boxes.within(start, end):
        if kind in found and kind in (b"pitm", b"iinf", b"iprp", b"iref", b"iloc", b"idat"):
            raise _broken(f"it has two boxes of type {kind.decode()}")
        found[kind] = begin, stop
    if b"pitm" in found:
        at = found[b"pitm"][0]
        pictures.primary = _number(content, at + 4, 2 if content[at] == 0 else 4)
    if b"iinf" in found:
        _read_kinds(boxes, pictures, *found[b"iinf"])
    if b"iprp" in found:
        _read_properties(boxes, pictures, *found[b"iprp"])
    if b"iref" in found:
        _read_references(boxes, pictures, *found[b"iref"])
    if b"iloc" in found:
        _read_locations(boxes, pictures, *found[b"iloc"], found.get(b"idat", (0, 0))[0])
    return pictures


def _item(pictures: Pictures, number: int) -> Item:
    if number not in pictures.items and len(pictures.items) == MAX_ITEMS:
        raise InvalidImage(
            FIELD,
            f"has more than {MAX_ITEMS} pictures, tiles and metadata items; save it as one picture",
            kind="too_complex",
        )
    return pictures.items.setdefault(number, Item())


def _number(content: bytes, at: int, length: int) -> int:
    if at + length > len(content):
        raise IndexError("beyond the file")
    return int.from_bytes(content[at : at + length], "big")


def _read_kinds(boxes: _Boxes, pictures: Pictures, start: int, end: int) -> None:
    """Read the types of items (ItemInfoBox)."""
    content = boxes.content
    for kind, at, _ in boxes.within(start + (6 if content[start] == 0 else 8), end):
        if kind != b"infe" or content[at] < 2:
            continue
        length = 2 if content[at] == 2 else 4
        item = _item(pictures, _number(content, at + 4, length))
        if item.kind:
            raise _broken("two pictures have the same number")
        item.kind = content[at + 6 + length : at + 10 + length]


def _read_properties(boxes: _Boxes, pictures: Pictures, start: int, end: int) -> None:
    """Read properties and whose they are (ItemPropertiesBox)."""
    content = boxes.content
    properties: list[tuple[bytes, bytes]] | None = None
    associations: list[tuple[int, int]] = []
    for kind, at, stop in boxes.within(start, end):
        if kind == b"ipco":
            if properties is not None:  # decoders take either
                raise _broken("it has two lists of properties")
            properties = [
                (name, content[begin:close]) for name, begin, close in boxes.within(at, stop)
            ]
        elif kind == b"ipma":
            associations.append((at, stop))
    for at, _ in associations:
        number_bytes = 2 if content[at] == 0 else 4
        index_bytes = 2 if content[at + 3] & 1 else 1
        entries = _number(content, at + 4, 4)
        at += 8
        for _ in range(entries):
            item = _item(pictures, _number(content, at, number_bytes))
            count = content[at + number_bytes]
            boxes.count(1 + count)
            at += number_bytes + 1
            for _ in range(count):
                # The highest bit says that the property may not be ignored.
                index = _number(content, at, index_bytes) & ((1 << 8 * index_bytes - 1) - 1)
                if properties is not None and 0 < index <= len(properties):
                    item.properties.append(properties[index - 1])
                at += index_bytes


def _read_references(boxes: _Boxes, pictures: Pictures, start: int, end: int) -> None:
    """Read what items are made of (ItemReferenceBox)."""
    content = boxes.content
    length = 2 if content[start] == 0 else 4
    for kind, at, _ in boxes.within(start + 4, end):
        number = _number(content, at, length)
        count = _number(content, at + length, 2)
        boxes.count(count)
        others = [
            _number(content, at + length + 2 + length * index, length) for index in range(count)
        ]
        if kind == b"dimg":
            _item(pictures, number).parts += others
        elif kind == b"auxl":
            for other in others:
                _item(pictures, other).auxiliary.append(number)


def _read_locations(boxes: _Boxes, pictures: Pictures, start: int, end: int, idat: int) -> None:
    """Read where items are (ItemLocationBox)."""
    content = boxes.content
    version, sizes = content[start], _number(content, start + 4, 2)
    offset_bytes, length_bytes, base_bytes, index_bytes = (
        sizes >> shift & 15 for shift in (12, 8, 4, 0)
    )
    if version == 0:
        index_bytes = 0
    number_bytes = 4 if version == 2 else 2
    at = start + 6 + number_bytes
    for _ in range(_number(content, start + 6, number_bytes)):
        item = _item(pictures, _number(content, at, number_bytes))
        at += number_bytes
        method = 0
        if version:
            method = _number(content, at, 2) & 15
            at += 2
        if method > 1 or item.extents:
            raise _broken("a picture lies within another, or in two places")
        base = _number(content, at + 2, base_bytes)
        at += 2 + base_bytes
        count = _number(content, at, 2)
        at += 2
        boxes.count(1 + count)
        for _ in range(count):
            at += index_bytes
            offset = base + _number(content, at, offset_bytes) + (idat if method == 1 else 0)
            length = _number(content, at + offset_bytes, length_bytes)
            at += offset_bytes + length_bytes
            item.extents.append((offset, offset + length if length else len(content)))
