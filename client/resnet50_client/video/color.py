"""Colour tags of decoded frames, by the code points of ITU-T H.273."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import av

Transfer: TypeAlias = Literal["sdr", "pq", "hlg"]
BT601, BT709, BT2020 = "ITU601", "ITU709", "BT2020"
# Matrix coefficients to swscale's names.
_MATRICES = {1: BT709, 4: "FCC", 5: BT601, 6: BT601, 7: "SMPTE240M", 9: BT2020, 10: BT2020}
_UNSPECIFIED = 2
_FULL_RANGE = 2  # AVColorRange
_TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}
_BT2020_PRIMARIES = 9


@dataclass(frozen=True)
class Color:
    """How a frame's values stand for colours.

    Attributes:
        matrix: swscale's name of the matrix of YUV.
        full_range: Levels are 0 to 255, not 16 to 235 and 240 (of 8 bits).
        transfer: "pq" and "hlg" of HDR, ITU-R BT.2100; "sdr" for all others.
        wide_gamut: The primaries are those of BT.2020.
        is_rgb: The frame is RGB, and the matrix says nothing.
    """

    matrix: str
    full_range: bool
    transfer: Transfer = "sdr"
    wide_gamut: bool = False
    is_rgb: bool = False

    @property
    def needs_tone_mapping(self) -> bool:
        """True if the colours are not those of BT.709."""
        return self.transfer != "sdr" or self.wide_gamut


def color_of(frame: av.VideoFrame, context: Any) -> Color:
    """Return a frame's colours by its tags, those of its stream, and its size.

    Args:
        frame: The decoded frame.
        context: Codec context of its stream. Versions of PyAV whose frames do not have all tags
            have them here.
    """
    name = frame.format.name
    is_rgb = frame.format.is_rgb
    transfer: Transfer = _TRANSFERS.get(_tag("color_trc", frame, context), "sdr")
    wide_gamut = _tag("color_primaries", frame, context) == _BT2020_PRIMARIES
    matrix = _MATRICES.get(_tag("colorspace", frame, context))
    if matrix is None:
        matrix = BT2020 if transfer != "sdr" or wide_gamut else guess_matrix(frame)
    full_range = is_rgb or name.startswith("yuvj")
    full_range = full_range or _tag("color_range", frame, context) == _FULL_RANGE
    return Color(matrix, full_range, transfer, wide_gamut, is_rgb)


def guess_matrix(frame: av.VideoFrame) -> str:
    """Return the matrix of an untagged frame: BT.709 for high definition, else BT.601.

    The rule of mpv and libplacebo (`pl_color_system_guess_ycbcr`), for the size as encoded.
    """
    return BT709 if frame.width >= 1280 or frame.height > 576 else BT601


def _tag(name: str, frame: av.VideoFrame, context: Any) -> int:
    """Return a tag of the frame, or else of its stream; 2, which means unspecified, if none."""
    unset = 0 if name == "color_range" else _UNSPECIFIED
    for owner in (frame, context):
        value = getattr(owner, name, None)
        if value is not None and int(value) != unset:
            return int(value)
    return unset
