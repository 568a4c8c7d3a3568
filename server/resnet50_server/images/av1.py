"""The size of AV1 frames, by their own headers (AV1 Bitstream & Decoding Process Specification)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .bits import Bits
from .iso_media import StepLimit

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6  # obu_type, section 6.2.2
_KEY_FRAME, _SWITCH_FRAME = 0, 3  # frame_type, section 6.8.2
_CHOSEN_BY_FRAME = 2  # SELECT_SCREEN_CONTENT_TOOLS, SELECT_INTEGER_MV
# A sequence header takes at most 32 operating points of 12 bytes, and 40 bytes more.
_READ_BYTES = 512


class _Sequence(NamedTuple):
    """A sequence header (section 5.5).

    Attributes:
        pixels: Of its frames.
        most_pixels: Of a frame that gives a size of its own, by the number of its bits.
        reduced: Whether frames have the short header of a still picture, without a size.
        time_bits: Length of a shown frame's presentation time; 0 if frames have none.
        id_bits: Length of a frame's number; 0 if frames have none.
        screen_content: Whether frames may use its tools; 2 if each says so.
        integer_motion: Whether motion is of whole pixels; 2 if each frame says so.
    """

    pixels: int
    most_pixels: int
    reduced: bool = True
    time_bits: int = 0
    id_bits: int = 0
    screen_content: int = _CHOSEN_BY_FRAME
    integer_motion: int = _CHOSEN_BY_FRAME


def coded_pixels(content: memoryview, limit: StepLimit) -> int:
    """Return how many pixels a decoder makes of an image item, all frames together.

    Args:
        content: The item's open bitstream units (OBUs).
        limit: Counts the units.

    Raises:
        InvalidImage: A header is cut off, or there are too many units.
    """
    sequence = _Sequence(0, 0)
    total = 0
    for kind, unit in _units(content):
        limit.count()
        if kind == _SEQUENCE_HEADER:
            sequence = _read_sequence(Bits(unit))
        elif kind in (_FRAME_HEADER, _FRAME):
            total += _frame_pixels(Bits(unit), sequence)
    return total


def _units(content: memoryview) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the beginning of each unit (section 5.3)."""
    at = 0
    while at < len(content):
        header = content[at]
        at += 2 if header & 4 else 1  # obu_extension_flag
        length = len(content) - at
        if header & 2:  # obu_has_size_field
            length, shift = 0, 0
            while at < len(content) and shift < 56:
                byte = content[at]
                length |= (byte & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if not byte & 0x80:
                    break
        yield header >> 3 & 15, bytes(content[at : at + min(length, _READ_BYTES)])
        at += length


def _read_sequence(bits: Bits) -> _Sequence:
    """Read a sequence header as far as it matters for the size of frames (section 5.5.1)."""
    bits.read(3 + 1)  # seq_profile, still_picture
    reduced = bits.read(1)
    time_bits = 0
    if reduced:
        bits.read(5)  # seq_level_idx
    else:
        time_bits = _read_timing(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    pixels = (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)
    if reduced:
        return _Sequence(pixels, pixels)
    id_bits = 0
    if bits.read(1):  # frame_id_numbers_present_flag
        id_bits = bits.read(4) + bits.read(3) + 3
    bits.read(3 + 4)  # tools of blocks, and of motion
    has_order = bits.read(1)  # enable_order_hint
    bits.read(2 * has_order)
    screen_content = _CHOSEN_BY_FRAME if bits.read(1) else bits.read(1)
    integer_motion = _CHOSEN_BY_FRAME
    if screen_content:
        integer_motion = _CHOSEN_BY_FRAME if bits.read(1) else bits.read(1)
    most_pixels = 1 << width_bits + height_bits
    return _Sequence(pixels, most_pixels, False, time_bits, id_bits, screen_content, integer_motion)


def _read_timing(bits: Bits) -> int:
    """Read timing and operating points; return the length of a frame's presentation time."""
    has_model = delay_bits = time_bits = 0
    if bits.read(1):  # timing_info_present_flag
        bits.read(64)
        regular = bits.read(1)  # equal_picture_interval
        if regular:
            bits.read_exp_golomb()
        has_model = bits.read(1)  # decoder_model_info_present_flag
        if has_model:
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5)
            time_bits = (bits.read(5) + 1) * (1 - regular)
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)  # operating_point_idc
        if bits.read(5) > 7:  # seq_level_idx
            bits.read(1)
        if has_model and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)
    return time_bits


def _frame_pixels(bits: Bits, sequence: _Sequence) -> int:
    """Return the most pixels of a frame, by the start of its header (section 5.9.2)."""
    if sequence.reduced:
        return sequence.pixels
    if bits.read(1):  # show_existing_frame: decoded before
        return 0
    kind, shown = bits.read(2), bits.read(1)
    if shown:
        bits.read(sequence.time_bits)
    else:
        bits.read(1)  # showable_frame
    if kind != _SWITCH_FRAME and not (kind == _KEY_FRAME and shown):
        bits.read(1)  # error_resilient_mode
    bits.read(1)  # disable_cdf_update
    screen_content = sequence.screen_content
    if screen_content == _CHOSEN_BY_FRAME:
        screen_content = bits.read(1)
    if screen_content and sequence.integer_motion == _CHOSEN_BY_FRAME:
        bits.read(1)
    bits.read(sequence.id_bits)
    own_size = kind == _SWITCH_FRAME or bits.read(1)  # frame_size_override_flag
    return sequence.most_pixels if own_size else sequence.pixels
