"""The size of HEVC pictures (ITU-T H.265), by their own headers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from .bits import Bits
from .iso_media import StepLimit

_SEQUENCE_PARAMETERS = 33  # nal_unit_type, table 7-1
_FIRST_NOT_A_SLICE = 32
# The size follows 14 to 110 other bytes.
_READ_BYTES = 160


def coded_pixels(configuration: bytes, content: memoryview, limit: StepLimit) -> int:
    """Return how many pixels a decoder makes of an image item, all pictures together.

    Args:
        configuration: The item's HEVCDecoderConfigurationRecord (ISO/IEC 14496-15).
        content: The item's NAL units, each behind its length.
        limit: Counts the units.

    Raises:
        InvalidImage: A header is cut off, or there are too many units.
    """
    length_bytes = configuration[21] % 4 + 1 if len(configuration) > 21 else 4
    largest = pictures = 0
    for unit in chain(_configured_units(configuration), _units(content, length_bytes)):
        limit.count()
        kind = unit[0] >> 1 & 0x3F
        if kind == _SEQUENCE_PARAMETERS:
            largest = max(largest, _picture_pixels(unit))
        elif kind < _FIRST_NOT_A_SLICE:
            pictures += unit[2] >> 7  # first_slice_segment_in_pic_flag
    return largest * max(pictures, 1)


def _configured_units(configuration: bytes) -> Iterator[bytes]:
    """Yield the parameter sets of a configuration record."""
    at = 23
    for _ in range(configuration[22] if len(configuration) > 22 else 0):
        count = int.from_bytes(configuration[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            end = at + 2 + int.from_bytes(configuration[at : at + 2], "big")
            if end > len(configuration):
                return
            if end - at > 4:
                yield configuration[at + 2 : end]
            at = end


def _units(content: memoryview, length_bytes: int) -> Iterator[bytes]:
    """Yield the beginning of each NAL unit of an item."""
    at = 0
    while at + length_bytes < len(content):
        length = int.from_bytes(content[at : at + length_bytes], "big")
        at += length_bytes
        unit = bytes(content[at : at + min(length, _READ_BYTES)])
        if len(unit) > 2:
            yield unit
        at += length


def _picture_pixels(unit: bytes) -> int:
    """Return width x height of a sequence parameter set (section 7.3.2.2)."""
    # Behind two zeros, a 3 only keeps the bytes from looking like the start of a unit. Decoders
    # leave it out of the unit's header, too: the second byte of that may be zero.
    bits = Bits(unit[:_READ_BYTES].replace(b"\0\0\3", b"\0\0")[2:])
    bits.read(4)  # sps_video_parameter_set_id
    sub_layers = bits.read(3)
    bits.read(1 + 88 + 8)  # temporal_id_nesting_flag, the general profile and its level
    flags = [(bits.read(1), bits.read(1)) for _ in range(sub_layers)]
    if sub_layers:
        bits.read(2 * (8 - sub_layers))
    for has_profile, has_level in flags:
        bits.read(88 * has_profile + 8 * has_level)
    bits.read_exp_golomb()  # sps_seq_parameter_set_id
    if bits.read_exp_golomb() == 3:  # chroma_format_idc
        bits.read(1)  # separate_colour_plane_flag
    width = bits.read_exp_golomb()
    return width * bits.read_exp_golomb()
