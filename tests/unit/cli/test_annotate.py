from __future__ import annotations

import av
import numpy as np
import pytest

from resnet50_cli.stream.annotate import Annotator
from resnet50_client import VideoFrame
from tests.support.clips import yuv_of

COLOUR = (200, 40, 90)


@pytest.mark.parametrize("levels", [None, "limited", "full"])
@pytest.mark.parametrize("matrix", [None, "BT601", "BT709"])
@pytest.mark.parametrize("layout", ["I420", "NV12"])
def test_frames_are_drawn_in_the_colors_that_they_declare(layout, matrix, levels, tmp_path):
    y, u, v = yuv_of(COLOUR, (matrix or "BT601").lower(), levels == "full")
    planes = np.full((72, 64), y, dtype=np.uint8)
    planes[48:] = (
        np.resize([u, v], (24, 64)) if layout == "NV12" else np.repeat([u, v], 12)[:, None]
    )
    annotator = Annotator(tmp_path / "out.mp4")
    annotator.write(VideoFrame(planes, layout, 0.0, 0, matrix, levels), 0.0, "")
    annotator.close()
    with av.open(str(tmp_path / "out.mp4")) as file:
        drawn = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(drawn.reshape(-1, 3).mean(axis=0) - COLOUR).max() <= 8
