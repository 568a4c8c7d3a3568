from __future__ import annotations

import inspect
import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from PIL import Image

from resnet50.v1 import image_pb2
from resnet50_client import VideoFrame, frames_from_video
from resnet50_client.images import to_image
from resnet50_server.api.image_source import parse_raw
from resnet50_server.images.raw import raw_to_rgb
from tests.support.clips import fill, hold_turned, picture_frame, write_clip, yuv_of
from tests.support.pictures import picture

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (255, 255, 255), (16, 30, 20)]


def rgb_of(frame: VideoFrame) -> np.ndarray:
    """Return what the server sees of a frame: uint8 [height, width, 3]."""
    image = to_image(frame)
    assert isinstance(image, image_pb2.Image)
    if image.WhichOneof("source") == "raw":
        return raw_to_rgb(parse_raw(image.raw, 10**8))
    return np.asarray(Image.open(io.BytesIO(image.encoded)).convert("RGB"))


def one_frame(path, **options) -> VideoFrame:
    (frame,) = frames_from_video(path, **options)
    return frame


@pytest.mark.parametrize("size", [(64, 48), (50, 46), (34, 2), (2, 34), (322, 182)])
@pytest.mark.parametrize("format", ["yuv420p", "nv12"])
def test_pixels_are_the_decoders_without_row_padding(size, format, tmp_path):
    frame = picture_frame(picture(*size), format)
    path = write_clip(tmp_path / "clip.nut", [frame], codec="rawvideo")
    given = one_frame(path)
    width, height = size
    assert given.pixel_format == {"yuv420p": "I420", "nv12": "NV12"}[format]
    assert given.image.shape == (height * 3 // 2, width)
    assert given.image.dtype == np.uint8
    np.testing.assert_array_equal(given.image, frame.to_ndarray().reshape(given.image.shape))


def test_frames_carry_index_and_time_and_outlive_the_decoder(tmp_path):
    frames = [fill((value, 128, 128), 32, 32, "yuv420p") for value in range(16, 226, 10)]
    path = write_clip(tmp_path / "clip.mkv", frames, fps=10)
    given = list(frames_from_video(str(path)))
    assert [frame.number for frame in given] == list(range(21))
    assert [frame.time_s for frame in given] == pytest.approx([0.1 * one for one in range(21)])
    assert [frame.image[0, 0] for frame in given] == list(range(16, 226, 10))


def test_time_starts_at_the_first_frame(tmp_path):
    frames = [fill((16, 128, 128), 32, 32, "yuv420p")] * 3
    path = write_clip(tmp_path / "clip.nut", frames, times_ms=[5000, 5040, 5080])
    assert [frame.time_s for frame in frames_from_video(path)] == pytest.approx([0, 0.04, 0.08])


def test_stream_without_times_is_counted_out(tmp_path):
    frames = [picture_frame(picture(64, 48))] * 4
    path = write_clip(tmp_path / "clip.m4v", frames, codec="mpeg4", fps=20)
    times = [frame.time_s for frame in frames_from_video(path)]
    assert times[0] == 0
    assert np.all(np.diff(times) > 0)


@pytest.mark.parametrize(
    "source_fps, fps, kept",
    [
        (30, 10, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]),
        (30, 15, list(range(0, 30, 2))),
        (30, 20, [one for one in range(30) if one % 3 != 1]),
        (30, 30, list(range(30))),
        (30, 1000, list(range(30))),
        (25, 10, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]),
        (30, 0.5, [0]),
    ],
)
def test_fps_keeps_frames_by_their_times(source_fps, fps, kept, tmp_path):
    # Matroska rounds to milliseconds, which must cost no frame.
    frames = [fill((16, 128, 128), 32, 32, "yuv420p")] * 30
    path = write_clip(tmp_path / "clip.mkv", frames, fps=source_fps)
    assert [frame.number for frame in frames_from_video(path, fps=fps)] == kept


def test_fps_goes_by_time_where_frames_come_unevenly(tmp_path):
    times_ms = [0, 10, 20, 30, 500, 510, 1000, 2000, 2010]
    frames = [fill((16, 128, 128), 32, 32, "yuv420p")] * len(times_ms)
    path = write_clip(tmp_path / "clip.nut", frames, times_ms=times_ms)
    kept = list(frames_from_video(path, fps=2))
    assert [frame.number for frame in kept] == [0, 4, 6, 7]
    assert [frame.time_s for frame in kept] == pytest.approx([0, 0.5, 1, 2])


@pytest.mark.parametrize(
    "size, encoding, is_raw",
    [
        ((1920, 1080), None, True),
        ((3840, 2160), None, False),
        ((1301, 1081), None, False),  # RGB
        ((3840, 2160), "raw", True),
        ((64, 48), "jpeg", False),
    ],
)
def test_frames_above_a_message_are_jpegs_by_default(size, encoding, is_raw, tmp_path):
    clip = write_clip(tmp_path / "clip.nut", [picture_frame(picture(*size), "yuv420p")])
    given = one_frame(clip, encoding=encoding)
    assert isinstance(given.image, np.ndarray) is is_raw
    if not is_raw:
        assert Image.open(io.BytesIO(given.image)).size == size


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize(
    "matrix, full_range, format",
    [
        ("bt601", False, "yuv420p"),
        ("bt601", False, "nv12"),
        (None, False, "yuv420p"),
        ("bt709", False, "yuv420p"),
        ("bt709", False, "nv12"),
        ("bt601", True, "yuv420p"),
        ("bt601", True, "nv12"),
        ("bt709", True, "yuv420p"),
        ("bt709", True, "nv12"),
        ("bt601", False, "yuv444p"),
        ("bt601", True, "yuv444p"),
        ("bt709", False, "yuv444p"),
        ("bt2020", False, "yuv420p"),
        ("bt2020", True, "yuv444p"),
        ("bt601", True, "yuvj422p"),
    ],
)
def test_colours_come_out_right(matrix, full_range, format, encoding, tmp_path):
    frames = [
        fill(yuv_of(colour, matrix or "bt601", full_range), 64, 48, format) for colour in COLOURS
    ]
    codec = {"nv12": "rawvideo", "yuvj422p": "mjpeg"}.get(format, "ffv1")
    path = write_clip(
        tmp_path / "clip.mkv", frames, codec=codec, matrix=matrix, full_range=full_range
    )
    for given, colour in zip(frames_from_video(path, encoding=encoding), COLOURS, strict=True):
        assert given.pixel_format in (("I420", "NV12") if encoding == "raw" else (None,))
        np.testing.assert_allclose(rgb_of(given)[24, 32], colour, atol=5)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("format", ["bgr0", "gray", "yuv420p10le", "yuv422p", "rgb24"])
def test_other_formats_become_what_the_contract_has(format, encoding, tmp_path):
    colour = (120, 120, 120) if format == "gray" else (200, 120, 40)
    frame = picture_frame(Image.new("RGB", (64, 48), colour), format)
    if format in ("gray", "bgr0", "rgb24"):
        frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), colour)).reformat(format=format)
    codec = "rawvideo" if format == "rgb24" else "ffv1"
    path = write_clip(tmp_path / "clip.nut", [frame], codec=codec, full_range=format == "gray")
    given = one_frame(path, encoding=encoding)
    assert given.pixel_format == ("I420" if encoding == "raw" else None)
    np.testing.assert_allclose(rgb_of(given)[24, 32], colour, atol=5)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("size", [(1280, 48), (64, 578)])
def test_untagged_high_definition_is_bt709(size, encoding, tmp_path):
    colour = (255, 0, 0)
    frame = fill(yuv_of(colour, "bt709"), *size, "yuv420p")
    path = write_clip(tmp_path / "clip.nut", [frame], codec="rawvideo")
    np.testing.assert_allclose(rgb_of(one_frame(path, encoding=encoding))[24, 32], colour, atol=5)


@pytest.mark.parametrize("size", [(1278, 48), (64, 576)])
def test_untagged_standard_definition_is_bt601(size, tmp_path):
    colour = (255, 0, 0)
    frame = fill(yuv_of(colour, "bt601"), *size, "yuv420p")
    path = write_clip(tmp_path / "clip.nut", [frame], codec="rawvideo")
    given = one_frame(path)
    assert (given.color_matrix, given.color_range) == (None, None)
    np.testing.assert_allclose(rgb_of(given)[24, 32], colour, atol=5)


@pytest.mark.parametrize("matrix, name", [("bt709", "BT709"), ("bt2020", "BT2020")])
@pytest.mark.parametrize("full_range", [False, True])
def test_planes_of_other_colours_are_sent_unchanged(matrix, name, full_range, tmp_path):
    frame = picture_frame(picture(64, 48))
    path = write_clip(tmp_path / "clip.mkv", [frame], matrix=matrix, full_range=full_range)
    given = one_frame(path)
    assert (given.color_matrix, given.color_range) == (name, "full" if full_range else None)
    np.testing.assert_array_equal(given.image, frame.to_ndarray())


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("size", [(35, 27), (34, 27), (35, 26), (1, 8), (8, 1), (1, 1)])
def test_odd_sizes_keep_every_row_and_column(size, encoding, tmp_path):
    source = picture(*size)
    path = write_clip(tmp_path / "clip.nut", [picture_frame(source)], codec="rawvideo")
    given = one_frame(path, encoding=encoding)
    assert given.pixel_format is None
    seen = rgb_of(given)
    assert seen.shape == (size[1], size[0], 3)
    if min(size) > 1:  # chroma of half the size is lost
        assert np.abs(seen.astype(int) - np.asarray(source)).mean() < 8


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize(
    "aspect, size",
    [(Fraction(4, 3), (128, 48)), (Fraction(8, 9), (86, 48)), (Fraction(200), (96, 48))],
)
def test_pixels_become_square(aspect, size, encoding, tmp_path):
    source = picture(96, 48)
    path = write_clip(
        tmp_path / "clip.mp4", [picture_frame(source)], codec="libx264", aspect=aspect
    )
    seen = rgb_of(one_frame(path, encoding=encoding))
    assert seen.shape == (size[1], size[0], 3)
    expected = np.asarray(source.resize(size, Image.Resampling.BILINEAR))
    assert np.abs(seen.astype(int) - expected).mean() < 8


def test_cropping_is_exact_on_every_side(tmp_path):
    whole = picture(96, 80)
    path = tmp_path / "clip.h264"
    write_clip(path, [picture_frame(whole)], codec="libx264", codec_options={"crf": "1"})
    crop = "h264_metadata=crop_left=6:crop_top=4:crop_right=10:crop_bottom=2"
    cropped = tmp_path / "cropped.h264"
    with av.open(str(path)) as before, av.open(str(cropped), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        filters = BitStreamFilterContext(crop, before.streams.video[0], stream)
        for packet in before.demux(video=0):
            for changed in filters.filter(packet if packet.size else None):
                changed.stream = stream
                after.mux(changed)
    seen = rgb_of(one_frame(cropped))
    expected = np.asarray(whole)[4:78, 6:86]
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(int) - expected).mean() < 6


def test_jpeg_frames_are_files_of_the_quality_asked_for(tmp_path):
    source = picture(96, 64)
    path = write_clip(tmp_path / "clip.mkv", [picture_frame(source)])
    good, poor = (one_frame(path, encoding="jpeg", jpeg_quality=one) for one in (95, 10))
    assert Image.open(io.BytesIO(good.image)).format == "JPEG"
    assert len(poor.image) < len(good.image)
    # Chroma of half the size is all that was lost.
    assert np.abs(rgb_of(good).astype(int) - np.asarray(source)).mean() < 4
    assert (good.pixel_format, good.number, good.time_s) == (None, 0, 0.0)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("size", [(96, 64), (95, 63)])
@pytest.mark.parametrize(
    "display, transpose",
    [
        (90, "ROTATE_270"),
        (-90, "ROTATE_90"),
        (180, "ROTATE_180"),
        ("mirrored", "FLIP_LEFT_RIGHT"),
        ("mirrored and 90", "TRANSPOSE"),
    ],
)
def test_video_that_was_held_turned_comes_upright(display, transpose, size, encoding, tmp_path):
    source = picture(*size)
    path = write_clip(tmp_path / "clip.mp4", [picture_frame(source)], codec="mpeg4", qmax=2)
    hold_turned(path, display)
    upright = np.asarray(source.transpose(Image.Transpose[transpose]))
    seen = rgb_of(one_frame(path, encoding=encoding))
    assert seen.shape == upright.shape
    assert np.abs(seen.astype(int) - upright).mean() < 8


def test_binary_files_are_sources_too_and_stay_open(tmp_path):
    frames = [picture_frame(picture(64, 48))] * 3
    content = write_clip(tmp_path / "clip.mkv", frames).read_bytes()
    file = io.BytesIO(content)
    assert len(list(frames_from_video(file))) == 3
    assert not file.closed


def test_it_is_a_generator():
    assert inspect.isgenerator(frames_from_video("clip.mp4"))
