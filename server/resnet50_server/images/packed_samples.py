"""TIFF samples of other depths than 8 and 16 bits, which lie in each row without gaps.

Their rows are read as 8-bit grey, whatever their compression, and then unpacked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Tags of TIFF 6.0.
_WIDTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 258, 259, 262, 277
_PLANES, _PREDICTOR, _TILE_WIDTH, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 284, 317, 322, 338, 339
_LONG = 4  # the type of a tag
# Compressions of bytes: none, LZW, Deflate in both of its numbers, PackBits, LZMA, Zstandard.
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
_SAMPLES_OF = {0: 1, 1: 1, 2: 3}  # by photometric interpretation: grey, whose 0 is white, and RGB
_STRIP_SAMPLES = 2**20


@dataclass(frozen=True)
class PackedSamples:
    """Unsigned samples of 2 to 15 bits, grey or RGB, the highest bit first.

    Attributes:
        bits: Bits of a sample.
        samples: Samples of a pixel, 1 or 3.
        width: Width of the image in pixels.
        tile_width: Width of a tile in pixels; None for strips.
        zero_is_white: Whether 0 is white, else black.
    """

    bits: int
    samples: int
    width: int
    tile_width: int | None
    zero_is_white: bool

    @classmethod
    def of(cls, tags: Any) -> PackedSamples | None:
        """Return the samples that the tags of a TIFF describe; None if they are of another kind."""
        photometric = tags.get(_PHOTOMETRIC, 0)
        samples, width, tile_width = tags.get(_SAMPLES, 1), tags.get(_WIDTH), tags.get(_TILE_WIDTH)
        bits, formats = set(tags.get(_BITS, ())), set(tags.get(_SAMPLE_FORMAT, (1,)))
        known = (
            _SAMPLES_OF.get(photometric) == samples
            and isinstance(width, int)
            and (tile_width is None or (isinstance(tile_width, int) and tile_width % 8 == 0))
            and len(bits) == 1
            and bits <= set(range(2, 16))
            and formats == {1}
            and tags.get(_COMPRESSION, 1) in _COMPRESSIONS
            and tags.get(_PREDICTOR, 1) == tags.get(_PLANES, 1) == 1
            and _EXTRA_SAMPLES not in tags
        )
        return cls(bits.pop(), samples, width, tile_width, photometric == 0) if known else None

    def describe_as_bytes(self, tags: Any, content: memoryview) -> None:
        """Change tags such that they describe the rows as 8-bit grey.

        Args:
            tags: Pillow's tags.
            content: The file, which libtiff reads.
        """
        changes = {_WIDTH: self._bytes(self.width), _BITS: 8, _PHOTOMETRIC: 1, _SAMPLES: 1}
        changes[_SAMPLE_FORMAT] = 1
        if self.tile_width is not None:
            changes[_TILE_WIDTH] = self._bytes(self.tile_width)
        order, big = ("<" if tags.prefix == b"II" else ">"), bytes(content[2:4]) == b"+\0"
        number, entry = ("Q", "HHQQ") if big else ("H", "HHII")
        (count,) = struct.unpack_from(order + number, content, tags.offset)
        at = tags.offset + struct.calcsize("=" + number)
        size = struct.calcsize("=" + entry)
        for start in range(at, at + size * min(count, len(content)), size):
            (tag,) = struct.unpack_from(order + "H", content, start)
            if tag in changes:
                struct.pack_into(order + entry, content, start, tag, _LONG, 1, changes[tag])
        for tag, value in changes.items():
            tags[tag] = (value,) if tag in (_BITS, _SAMPLE_FORMAT) else value

    def pixels(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the samples scaled to 8 bits, black 0 and white 255.

        Args:
            rows: uint8 [height, bytes], the rows as they are packed.

        Returns:
            uint8 [height, width] or [height, width, 3].
        """
        levels = np.rint(np.linspace(0, 255, 2**self.bits)).astype(np.uint8)
        if self.zero_is_white:
            levels = levels[::-1]
        count = self.width * self.samples
        groups = -(-count // 8)  # of 8 samples, which begin with a byte
        scaled = np.empty((len(rows), groups * 8), dtype=np.uint8)
        strip_rows = max(1, _STRIP_SAMPLES // count)
        for top in range(0, len(rows), strip_rows):
            strip = rows[top : top + strip_rows]
            # A sample lies in at most three bytes.
            strip = np.pad(strip, ((0, 0), (0, groups * self.bits + 2 - strip.shape[1])))
            for number in range(8):
                first, offset = divmod(number * self.bits, 8)
                value: NDArray[np.uint32] = np.zeros((len(strip), groups), dtype=np.uint32)
                for byte in range(first, first + 3):
                    value <<= 8
                    value |= strip[:, byte :: self.bits][:, :groups]
                value >>= 24 - offset - self.bits
                value &= 2**self.bits - 1
                scaled[top : top + strip_rows, number::8] = levels[value]
        shape = (len(rows), self.width, self.samples)
        return scaled[:, :count].reshape(shape[: 2 + (self.samples > 1)])

    def _bytes(self, width: int) -> int:
        """Return the bytes of a row of so many pixels."""
        return -(-width * self.samples * self.bits // 8)
