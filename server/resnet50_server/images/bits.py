"""Read numbers of any number of bits, as the headers of video codecs have them."""

from __future__ import annotations

from resnet50_server.errors import InvalidImage

from .decode_guard import FIELD


class Bits:
    """Reads bits from the most significant one on.

    Args:
        content: The header; only as much as is read should be passed.
    """

    def __init__(self, content: bytes) -> None:
        self._value = int.from_bytes(content, "big")
        self._left = 8 * len(content)

    def read(self, count: int) -> int:
        """Return the next `count` bits as a number.

        Raises:
            InvalidImage: There are fewer.
        """
        if count > self._left:
            raise InvalidImage(
                FIELD, "is truncated or broken: a picture's header ends early", kind="truncated"
            )
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def read_exp_golomb(self) -> int:
        """Return the next number in Exp-Golomb code: ue(v) of ITU-T H.265, uvlc() of AV1."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)
