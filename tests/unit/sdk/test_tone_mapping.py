"""HDR video as the server sees it, against the formulas of the standards."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from resnet50_client import frames_from_video
from resnet50_client.video import tone_mapping
from resnet50_client.video.tone_mapping import (
    HDR_PEAK,
    SDR_PEAK,
    compress,
    hlg_to_light,
    light_to_pq,
    pq_to_light,
    to_bt709,
)
from tests.support.clips import deep_frame, write_clip
from tests.support.pictures import photo_like
from tests.unit.sdk.test_video import rgb_of


@pytest.mark.parametrize(
    # BT.2408, tables 1 and 2: signal levels of PQ and of HLG on a display of 1,000 cd/m².
    "to_light, signal, light",
    [
        (pq_to_light, 0.0, 0),
        (pq_to_light, 0.38, 26),
        (pq_to_light, 0.58, 203),
        (pq_to_light, 0.75, 983),
        (pq_to_light, 1.0, 10_000),
        (hlg_to_light, 0.0, 0),
        (hlg_to_light, 0.38, 26),
        (hlg_to_light, 0.75, 203),
        (hlg_to_light, 1.0, 1000),
    ],
)
def test_light_is_that_of_the_standard(to_light, signal, light):
    found = to_light(np.full((1, 3), signal))
    np.testing.assert_allclose(found, light, rtol=0.03, atol=1e-3)


def test_pq_is_inverted():
    signal = np.linspace(0, 1, 101)
    np.testing.assert_allclose(light_to_pq(pq_to_light(signal)), signal, atol=1e-6)


def test_highlights_are_compressed_and_shadows_kept():
    light = np.linspace(0, HDR_PEAK, 1001)
    compressed = compress(light)
    assert compressed[-1] == pytest.approx(SDR_PEAK, rel=1e-3)
    assert np.all(np.diff(compressed) > 0)
    assert np.all(compressed <= light + 1e-6)
    np.testing.assert_allclose(compressed[light <= 50], light[light <= 50], rtol=1e-6)
    assert compress(np.array([10 * HDR_PEAK])) == pytest.approx(SDR_PEAK, rel=1e-3)


@pytest.mark.parametrize("transfer", ["sdr", "pq", "hlg"])
def test_grey_stays_grey_and_white_is_white(transfer):
    levels = np.linspace(0, 1, 50)[:, None].repeat(3, axis=1)
    mapped = to_bt709(levels, transfer)
    np.testing.assert_allclose(mapped, mapped[:, :1].repeat(3, axis=1), atol=2e-3)
    assert np.all(np.diff(mapped[:, 0]) >= -1e-9)
    assert mapped[0].max() < 0.01
    assert mapped[-1].min() > 0.99


def hdr_of(sdr: np.ndarray) -> np.ndarray:
    """Return PQ R'G'B' of BT.2020 that shows BT.709 colours as they are, white at `SDR_PEAK`."""
    light = SDR_PEAK * (sdr / 255) ** 2.4 @ np.linalg.inv(tone_mapping.TO_BT709).T
    return light_to_pq(light.clip(0))


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("transfer", ["pq", "hlg", "bt709"])
@pytest.mark.parametrize("full_range", [False, True])
def test_frames_are_mapped_as_by_the_formula(transfer, full_range, encoding, tmp_path, caplog):
    draw = np.random.default_rng(1)
    colours = draw.uniform(0, 1, (6, 8, 3)) ** draw.uniform(0.3, 2, (6, 8, 1))
    signal = colours.repeat(16, axis=0).repeat(16, axis=1)
    frame = deep_frame(signal, "yuv444p10le", "bt2020", full_range)
    path = write_clip(
        tmp_path / "clip.mkv",
        [frame] * 3,
        matrix="bt2020",
        transfer=transfer,
        full_range=full_range,
    )
    with caplog.at_level(logging.WARNING):
        given = list(frames_from_video(path, encoding=encoding, jpeg_quality=100))
    kind = {"pq": "HDR (PQ)", "hlg": "HDR (HLG)", "bt709": "in BT.2020 colours"}[transfer]
    assert [kind in record.getMessage() for record in caplog.records] == [True]
    if encoding == "raw":
        assert (given[0].pixel_format, given[0].color_matrix) == ("I420", "BT709")
    seen = rgb_of(given[-1])[8::16, 8::16].astype(float)
    expected = 255 * to_bt709(colours, "sdr" if transfer == "bt709" else transfer)
    difference = np.abs(seen - expected)
    assert difference.mean() < 2
    assert np.percentile(difference, 95) < 6


def test_hdr_of_a_photo_looks_like_the_photo(tmp_path):
    photo = np.asarray(photo_like(96, 64))
    frame = deep_frame(hdr_of(photo), "yuv420p10le", "bt2020")
    seen = {}
    for transfer in ("pq", None):
        path = write_clip(tmp_path / f"{transfer}.mkv", [frame], matrix="bt2020", transfer=transfer)
        (given,) = frames_from_video(path)
        seen[transfer] = np.abs(rgb_of(given).astype(float) - photo).mean()
    assert seen["pq"] < 15
    assert seen["pq"] < seen[None] / 3
