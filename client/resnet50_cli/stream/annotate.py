"""Annotated video: each frame with its top label and probability drawn into it."""

from __future__ import annotations

import io
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet50_client.images import ImageInput, VideoFrame

if TYPE_CHECKING:
    import PIL.Image

# A multiple of 24, 25, 30 and 30000/1001 frames per second; MPEG-4 allows at most 65535.
TICKS_PER_S = 60_000
_PLANAR = {"I420": "yuv420p", "NV12": "nv12"}
# FFmpeg's AVColorSpace and AVColorRange.
_COLORSPACES = {None: 6, "BT601": 6, "BT709": 1, "BT2020": 9}
_COLOR_RANGES = {None: 1, "limited": 1, "full": 2}


class Annotator:
    """Writes frames with a caption to an MP4 file; the first one gives the size.

    Args:
        path: Path of the file to write.

    Raises:
        ImportError: PyAV or Pillow is not installed.
    """

    def __init__(self, path: Path) -> None:
        import av
        import PIL.ImageDraw
        import PIL.ImageFont
        import PIL.ImageOps

        self._av: Any = av
        self._pil: Any = PIL
        self._path = path
        self._file: Any = None
        self._stream: Any = None
        self._size = (0, 0)
        self._last_tick = -1

    def write(self, image: ImageInput, time_s: float, caption: str) -> None:
        """Add a frame.

        Args:
            image: The image that was sent; an unreadable one becomes a black frame.
            time_s: Presentation time in seconds, later than that of all earlier frames.
            caption: Text to draw; "" for none.

        Raises:
            OSError: The file cannot be written.
        """
        try:
            picture = self._picture(image)
        except (OSError, ValueError):
            picture = self._pil.Image.new("RGB", self._size if self._stream else (320, 240))
        if self._stream is None:
            self._begin(picture)
        if picture.size != self._size:
            picture = self._pil.ImageOps.pad(picture, self._size)
        if caption:
            self._draw(picture, caption)
        frame = self._av.VideoFrame.from_image(picture).reformat(format="yuv420p")
        # Players need increasing timestamps, even if a camera's clock goes backwards.
        self._last_tick = max(self._last_tick + 1, round(time_s * TICKS_PER_S))
        frame.pts, frame.time_base = self._last_tick, Fraction(1, TICKS_PER_S)
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        if self._file is None:  # no frame was written
            return
        with closing(self._file):
            if self._stream is not None:
                self._file.mux(self._stream.encode(None))

    def _begin(self, picture: PIL.Image.Image) -> None:
        try:
            self._av.codec.Codec("libx264", "w")
            codec, options = "libx264", {"preset": "veryfast", "crf": "20"}
        except ValueError:  # a build of FFmpeg without it
            codec, options = "mpeg4", {"qscale": "4"}
        self._file = self._av.open(str(self._path), "w", format="mp4")
        self._stream = self._file.add_stream(codec, rate=30, options=options)
        width, height = (max(2, side // 2 * 2) for side in picture.size)
        self._size = (width, height)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS_PER_S)

    def _picture(self, image: Any) -> Any:
        """Convert a frame to a PIL image to draw on."""
        if isinstance(image, VideoFrame):
            if image.pixel_format in _PLANAR:
                return self._planar_picture(image)
            image = image.image
        if isinstance(image, np.ndarray):
            return self._pil.Image.fromarray(image).convert("RGB")
        opened = self._pil.Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        return self._pil.ImageOps.exif_transpose(opened).convert("RGB")

    def _planar_picture(self, frame: VideoFrame) -> Any:
        """Convert a YUV frame by its matrix and range."""
        planes = self._av.VideoFrame.from_ndarray(
            frame.image, format=_PLANAR[frame.pixel_format or ""]
        )
        planes.colorspace = _COLORSPACES[frame.color_matrix]
        planes.color_range = _COLOR_RANGES[frame.color_range]
        return planes.to_image()

    def _draw(self, picture: PIL.Image.Image, caption: str) -> None:
        draw: Any = self._pil.ImageDraw.Draw(picture)
        width, height = picture.size
        size = max(10, height // 16)
        font = self._pil.ImageFont.load_default
        length = draw.textlength(caption, font=font(size))
        if length > width - size:  # a long label in a narrow picture
            size = max(8, int(size * (width - size) / length))
        draw.rectangle((0, height - 2 * size, width, height), fill=(0, 0, 0))
        draw.text((size // 2, height - size), caption, (255, 255, 255), font(size), anchor="lm")
