"""Bounds the fields of a message before it is parsed.

An empty element of a repeated field takes 2 bytes in a message and about 50 parsed, and parsing
holds the event loop: 4 MiB of empty images would take 100 MiB and 0.1 s. Walking over the fields
ends at the limit, and skips what holds no repeated field. A packed element takes as little as one
byte, and eight parsed: each byte of a packed field counts as a field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from resnet50_server.errors import InvalidRequest

# Of a whole message: four for each image of the largest `max_images_per_call`.
MAX_FIELDS = 16_384

# Field numbers of messages with repeated fields, each with the same of its own; None for packed
# numbers.
RepeatedParts: TypeAlias = "dict[int, RepeatedParts | None]"

# Wire types of https://protobuf.dev/programming-guides/encoding/; 3 and 4 are groups, which proto3
# has not.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10
_NEVER_PACKED = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def bounded(parse: Callable[[bytes], Any], descriptor: Descriptor) -> Callable[[bytes], Any]:
    """Return a parser of messages that refuses one with too many fields.

    Args:
        parse: The parser.
        descriptor: Of the messages' type.
    """
    if not _has_repeated(descriptor, set()):
        return parse
    parts = _repeated_parts(descriptor, {})

    def parse_bounded(content: bytes) -> Any:
        _count(content, 0, len(content), parts, MAX_FIELDS)
        return parse(content)

    return parse_bounded


def _count(content: bytes, position: int, end: int, parts: RepeatedParts, left: int) -> int:
    """Return how many fields are left of a limit after those of a message.

    Args:
        content: Holds the message.
        position: Where it begins.
        end: Where it ends.
        parts: Its fields to look into.
        left: The limit.

    Raises:
        InvalidRequest: There are more.
        DecodeError: It is malformed.
    """
    while position < end:
        left -= 1
        if left < 0:
            raise _too_many()
        tag, position = _varint(content, position, end)
        wire_type = tag & 7
        if wire_type == _BYTES:
            length, position = _varint(content, position, end)
            begin, position = position, position + length
            if position > end:
                raise DecodeError("a field is longer than the message")
            if (number := tag >> 3) in parts:
                nested = parts[number]
                if nested is not None:
                    left = _count(content, begin, position, nested, left)
                elif (left := left - length) < 0:
                    raise _too_many()
        elif wire_type == _VARINT:
            _, position = _varint(content, position, end)
        elif wire_type in _FIXED_BYTES:
            position += _FIXED_BYTES[wire_type]
        else:
            raise DecodeError(f"a field has the wire type {wire_type}, which proto3 does not use")
    return left


def _too_many() -> InvalidRequest:
    return InvalidRequest(
        "message", f"has more than {MAX_FIELDS} fields, the limit; send fewer images a call"
    )


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number of variable length, and the position behind it."""
    if position < end and (value := content[position]) < 0x80:
        return value, position + 1
    value = 0
    for index, byte in enumerate(content[position : min(end, position + _MAX_VARINT_BYTES)]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise DecodeError("a number is cut off")


def _repeated_parts(descriptor: Descriptor, known: dict[str, RepeatedParts]) -> RepeatedParts:
    """Return the fields of a message type that hold repeated fields themselves."""
    if descriptor.full_name in known:  # a type that contains itself
        return known[descriptor.full_name]
    parts = known[descriptor.full_name] = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            if _has_repeated(field.message_type, set()):
                parts[field.number] = _repeated_parts(field.message_type, known)
        elif _is_repeated(field) and field.type not in _NEVER_PACKED:
            parts[field.number] = None
    return parts


def _has_repeated(descriptor: Descriptor, seen: set[str]) -> bool:
    if descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    return any(
        _is_repeated(field)
        or (field.message_type is not None and _has_repeated(field.message_type, seen))
        for field in descriptor.fields
    )


def _is_repeated(field: FieldDescriptor) -> bool:
    # `label` is deprecated since protobuf 6.31, which brought `is_repeated`.
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED)  # type: ignore[attr-defined]
