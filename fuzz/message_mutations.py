"""How the messages of a call are broken: in their fields, in their order, and as any bytes are."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from fuzz.mutations import ANYWHERE, NUMBERS, spliced

# Interesting values of a message's numbers; lengths and tags are numbers too.
VARINTS = (*NUMBERS, 2**32, 2**35, 2**63 - 1, 2**63, 2**64 - 1)
LENGTH_DELIMITED = 2


def mutated_messages(draw: Random, messages: list[bytes], others: list[bytes]) -> list[bytes]:
    """Return what a call sends with one to four things wrong with it.

    Args:
        draw: Decides; the same one gives the same messages.
        messages: That the call sends, serialized.
        others: Of other calls, which may come among them or into one of them.
    """
    changed = list(messages)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(changed))
        match draw.randrange(12):
            case 0 if len(changed) > 1:
                del changed[at]
            case 1:
                changed.insert(at, draw.choice(others))
            case 2:
                changed.insert(at, changed[draw.randrange(len(changed))])
            case 3:
                changed[at] = spliced(draw, changed[at], draw.choice(others))
            case 4 | 5 | 6 | 7 | 8:
                changed[at] = _mutated_fields(draw, changed[at])
            case _:
                changed[at] = draw.choice(ANYWHERE)(draw, changed[at])
    return changed


def _mutated_fields(draw: Random, content: bytes, depth: int = 0) -> bytes:
    """Change one field of a message, or of a message within it."""
    fields = list(_fields(content))
    if not fields:
        return content + _varint(draw.choice(VARINTS))
    start, inside, end, kind = draw.choice(fields)
    tag, value = content[start:inside], content[inside:end]
    if kind == LENGTH_DELIMITED:
        length = end - inside - len(_varint_at(content, inside)[1])
        value = content[end - length : end]
        if depth < 4 and draw.random() < 0.7:
            value = _mutated_fields(draw, value, depth + 1)
        else:
            value = draw.choice(ANYWHERE)(draw, value)
        lied = draw.random() < 0.2
        value = _varint(draw.choice(VARINTS) if lied else len(value)) + value
    elif kind == 0:
        value = _varint(draw.choice((*VARINTS, draw.getrandbits(64))))
    else:
        value = draw.choice((draw.randbytes(len(value)), b"\xff" * len(value), bytes(len(value))))
    match draw.randrange(8):
        case 0:
            return content[:start] + content[end:]
        case 1:
            return content[:end] + tag + value + content[end:]
        case 2:
            tag = _varint(draw.choice((draw.randrange(64), *VARINTS)))
    return content[:start] + tag + value + content[end:]


def _fields(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Give (start, start of the value, end, wire type) of a message's fields."""
    at = 0
    while at < len(content):
        tag, taken = _varint_at(content, at)
        inside, kind = at + len(taken), tag & 7
        if not taken or kind not in (0, 1, LENGTH_DELIMITED, 5):
            return
        if kind == 0:
            end = inside + len(_varint_at(content, inside)[1])
        elif kind == LENGTH_DELIMITED:
            length, taken = _varint_at(content, inside)
            end = inside + len(taken) + length
        else:
            end = inside + (8 if kind == 1 else 4)
        if end > len(content):
            return
        yield at, inside, end, kind
        at = end


def _varint(value: int) -> bytes:
    packed = bytearray()
    while value > 127:
        packed.append(value & 127 | 128)
        value >>= 7
    return bytes((*packed, value))


def _varint_at(content: bytes, at: int) -> tuple[int, bytes]:
    """Return a number and the bytes that it takes; none if it does not end."""
    value = 0
    for taken, byte in enumerate(content[at : at + 10]):
        value |= (byte & 127) << 7 * taken
        if byte < 128:
            return value, content[at : at + taken + 1]
    return 0, b""
