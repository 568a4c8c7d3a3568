"""HDR video and BT.2020 colours as BT.709 in standard dynamic range.

Light is computed as on a display, in cd/m²: PQ and HLG by ITU-R BT.2100, for a display of
`HDR_PEAK` (HLG with its system gamma of 1.2); standard dynamic range by BT.1886. The brightest of
red, green and blue is compressed to `SDR_PEAK` by the curve of BT.2390 (EETF), the others in
proportion, which keeps the hue. Primaries are converted by BT.2087; colours outside of BT.709 are
clipped. `SDR_PEAK` is the level of white in HDR by BT.2408.

The result is a table from which FFmpeg's filter `lut3d` interpolates.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .color import Transfer

if TYPE_CHECKING:
    import av

Floats = NDArray[np.float64]

HDR_PEAK = 1000.0
SDR_PEAK = 203.0
PIXEL_FORMAT = "gbrp16le"  # of frames before and after: enough for 12 bits
_TABLE_SIDE = 33
_SDR_GAMMA = 2.4  # BT.1886 with black at 0

# BT.2100, PQ.
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_PQ_PEAK = 10000.0
# BT.2100, HLG.
_A = 0.17883277
_B = 1 - 4 * _A
_C = 0.5 - _A * np.log(4 * _A)
_SYSTEM_GAMMA = 1.2
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593])  # of BT.2020
# BT.2087: linear BT.2020 to linear BT.709.
TO_BT709 = np.array(
    [
        [1.6605, -0.5876, -0.0728],
        [-0.1246, 1.1329, -0.0083],
        [-0.0182, -0.1006, 1.1187],
    ]
)


def pq_to_light(signal: Floats) -> Floats:
    """Return light in cd/m² of PQ values from 0 to 1."""
    power = signal ** (1 / _M2)
    light = np.maximum(power - _C1, 0) / (_C2 - _C3 * power)
    return _PQ_PEAK * light ** (1 / _M1)


def light_to_pq(light: Floats) -> Floats:
    """Return PQ values of light in cd/m²."""
    power = (light / _PQ_PEAK) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def hlg_to_light(signal: Floats) -> Floats:
    """Return light in cd/m², on a display of `HDR_PEAK`, of HLG values [..., 3] from 0 to 1."""
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - _C) / _A) + _B) / 12)
    luminance = (scene @ _LUMINANCE)[..., None]
    gain = np.maximum(luminance, 1e-9) ** (_SYSTEM_GAMMA - 1)
    return cast("Floats", HDR_PEAK * gain * scene)


def compress(light: Floats) -> Floats:
    """Return light of 0 to `HDR_PEAK` cd/m² as 0 to `SDR_PEAK`: the EETF of BT.2390."""
    peak, sdr_peak = light_to_pq(np.array([HDR_PEAK, SDR_PEAK]))
    top = sdr_peak / peak
    knee = 1.5 * top - 0.5
    signal = np.minimum(light_to_pq(light) / peak, 1.0)
    t = np.maximum(signal - knee, 0) / (1 - knee)
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * top
    )
    return pq_to_light(np.where(signal < knee, signal, curve) * peak)


def to_bt709(signal: Floats, transfer: Transfer) -> Floats:
    """Return colours as BT.709 in standard dynamic range.

    Args:
        signal: R'G'B' [..., 3] of BT.2020 primaries, 0 to 1.
        transfer: Their transfer function.

    Returns:
        R'G'B' [..., 3], 0 to 1.
    """
    if transfer == "sdr":
        light = signal**_SDR_GAMMA
    else:
        light = pq_to_light(signal) if transfer == "pq" else hlg_to_light(signal)
        brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
        light = light * compress(brightest) / brightest / SDR_PEAK
    return cast("Floats", (light @ TO_BT709.T).clip(0, 1) ** (1 / _SDR_GAMMA))


@cache
def _table(transfer: Transfer) -> bytes:
    """Return `to_bt709` as the content of a .cube file, whose red changes fastest."""
    levels = np.linspace(0, 1, _TABLE_SIDE)
    blue, green, red = np.meshgrid(levels, levels, levels, indexing="ij")
    signal = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
    rows = "\n".join("{:.6f} {:.6f} {:.6f}".format(*row) for row in to_bt709(signal, transfer))
    return f"LUT_3D_SIZE {_TABLE_SIDE}\n{rows}\n".encode()


class ToneMapper:
    """Converts frames of BT.2020 primaries to BT.709 in standard dynamic range."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._graph: Any = None

    def __call__(self, frame: av.VideoFrame, transfer: Transfer) -> av.VideoFrame:
        """Convert a frame of `PIXEL_FORMAT`."""
        key = frame.width, frame.height, transfer
        if key != self._key:
            self._key, self._graph = key, self._build(frame, transfer)
        self._graph.push(frame)
        return cast("av.VideoFrame", self._graph.pull())

    def _build(self, frame: av.VideoFrame, transfer: Transfer) -> Any:
        import av.filter

        graph: Any = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=PIXEL_FORMAT,
            time_base=Fraction(1, 1000),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.cube"
            path.write_bytes(_table(transfer))
            table = graph.add("lut3d", file=str(path), interp="tetrahedral")
            sink = graph.add("buffersink")
            source.link_to(table)
            table.link_to(sink)
            graph.configure()
        return graph
