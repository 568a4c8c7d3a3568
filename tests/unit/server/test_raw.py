from __future__ import annotations

import numpy as np
import pytest

from resnet50.v1 import image_pb2
from resnet50_server.api.image_source import parse_image, parse_raw
from resnet50_server.errors import InvalidImage
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.raw import raw_to_rgb
from resnet50_server.images.resize import resample
from resnet50_server.images.source import ColorMatrix, ColorRange, PixelFormat
from tests.support.pictures import photo_like

LIMITS = ImageLimits()
RGB = np.asarray(photo_like(32, 24))


def raw(pixels: bytes, format: str, width=32, height=24, stride=0) -> image_pb2.RawImage:
    return image_pb2.RawImage(
        width=width,
        height=height,
        pixel_format=image_pb2.PixelFormat.Value(f"PIXEL_FORMAT_{format}"),
        row_stride_bytes=stride,
        pixels=pixels,
    )


def shown(image: image_pb2.RawImage) -> np.ndarray:
    return raw_to_rgb(parse_raw(image, LIMITS.max_pixels))


def padded(plane: np.ndarray, stride: int) -> bytes:
    """Lay out the rows of a plane `stride` bytes apart, the padding filled with rubbish."""
    rows = plane.reshape(plane.shape[0], -1)
    out = np.full((rows.shape[0], stride), 0xEE, dtype=np.uint8)
    out[:, : rows.shape[1]] = rows
    return out.tobytes()


@pytest.mark.parametrize("stride", [0, 96, 100, 128])
def test_rgb_is_taken_as_it_is(stride):
    assert (shown(raw(padded(RGB, stride or 96), "RGB", stride=stride)) == RGB).all()


def test_bgr_is_reversed():
    assert (shown(raw(RGB[:, :, ::-1].tobytes(), "BGR")) == RGB).all()


def test_alpha_is_dropped():
    rgba = np.dstack([RGB, np.full((24, 32), 7, dtype=np.uint8)])
    assert (shown(raw(rgba.tobytes(), "RGBA")) == RGB).all()


def test_grey_fills_three_channels():
    grey = RGB[:, :, 0]
    assert (shown(raw(grey.tobytes(), "GRAY")) == grey[:, :, None]).all()


def test_padding_after_the_last_row_may_be_left_out():
    assert (shown(raw(padded(RGB, 100)[:-4], "RGB", stride=100)) == RGB).all()


def yuv_planes(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BT.601 limited range by its textbook equations; chroma of 2 x 2 blocks."""
    r, g, b = (rgb[:, :, channel].astype(float) for channel in range(3))
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    u = 128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255
    v = 128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255
    half = [plane.reshape(12, 2, 16, 2).mean(axis=(1, 3)) for plane in (u, v)]
    return tuple(np.rint(plane).astype(np.uint8) for plane in (y, *half))


BLOCKS = RGB[::2, ::2].repeat(2, axis=0).repeat(2, axis=1)  # chroma survives subsampling


@pytest.mark.parametrize("stride", [0, 40])
def test_nv12_is_bt601_video_range(stride):
    y, u, v = yuv_planes(BLOCKS)
    width = stride or 32
    content = padded(y, width) + padded(np.dstack([u, v]), width)
    assert np.abs(shown(raw(content, "NV12", stride=stride)).astype(int) - BLOCKS).max() <= 3


@pytest.mark.parametrize("stride", [0, 40, 41])
def test_i420_is_bt601_video_range(stride):
    y, u, v = yuv_planes(BLOCKS)
    width = stride or 32
    half = (width + 1) // 2  # of an odd stride, rounded up
    content = padded(y, width) + padded(u, half) + padded(v, half)
    assert np.abs(shown(raw(content, "I420", stride=stride)).astype(int) - BLOCKS).max() <= 3


@pytest.mark.parametrize(
    ("image", "field", "text"),
    [
        (raw(b"", "RGB", width=0), "image.raw.width", "is 0, must be 1 to 65535"),
        (raw(b"", "RGB", height=70_000), "image.raw.height", "is 70000"),
        (raw(b"", "UNSPECIFIED"), "image.raw.pixel_format", "PIXEL_FORMAT_NV12"),
        (
            image_pb2.RawImage(width=1, height=1, pixel_format=77),
            "image.raw.pixel_format",
            "is 77, must be one of",
        ),
        (raw(bytes(10), "RGB"), "image.raw.pixels", "has 10 bytes.*needs 2304"),
        (raw(bytes(2305), "RGB"), "image.raw.pixels", "needs 2304"),
        (raw(bytes(2304), "RGB", stride=95), "image.raw.row_stride_bytes", "has 96 bytes"),
        (raw(bytes(2000), "RGB", stride=100), "image.raw.pixels", "needs 2396 to 2400"),
        (raw(bytes(33 * 24), "NV12", width=33), "image.raw.width", "must be even"),
        (raw(b"", "RGB", width=60_000, height=60_000), "image.raw.width", "max_image_pix"),
    ],
)
def test_numbers_that_do_not_add_up_are_refused(image, field, text):
    with pytest.raises(InvalidImage, match=text) as refused:
        parse_image(image_pb2.Image(raw=image), LIMITS)
    assert refused.value.field == field


def test_yuv_of_a_tall_frame_is_that_of_its_parts():
    """Conversion goes strip by strip; no seam may show."""
    draw = np.random.default_rng(0)
    luma = draw.integers(0, 256, (110, 32), dtype=np.uint8)
    chroma = draw.integers(0, 256, (55, 32), dtype=np.uint8)
    tall = shown(raw(luma.tobytes() + chroma.tobytes(), "NV12", height=110))
    for top in range(0, 110, 2):
        part = luma[top : top + 2].tobytes() + chroma[top // 2].tobytes()
        assert (tall[top : top + 2] == shown(raw(part, "NV12", height=2))).all()


@pytest.mark.parametrize("format", ["NV12", "I420"])
def test_downscaling_before_conversion_matches_after(format):
    whole = photo_like(640, 480)
    y, u, v = (np.asarray(plane) for plane in whole.convert("YCbCr").split())
    # Pillow's YCbCr is of full range; here all three planes only have to vary.
    u, v = (np.ascontiguousarray(plane[::2, ::2]) for plane in (u, v))
    chroma = np.dstack([u, v]).tobytes() if format == "NV12" else u.tobytes() + v.tobytes()
    frame = parse_raw(raw(y.tobytes() + chroma, format, 640, 480), LIMITS.max_pixels)
    before = raw_to_rgb(frame, (232, 309), "bilinear").astype(int)
    after = resample(raw_to_rgb(frame), (232, 309), "bilinear").astype(int)
    assert before.shape == after.shape == (232, 309, 3)
    assert np.abs(before - after).mean() < 1.0
    assert np.percentile(np.abs(before - after), 99) <= 4


def test_pixel_formats_are_those_of_the_contract():
    ours = {f"PIXEL_FORMAT_{known.name}": known.value for known in PixelFormat}
    assert ours == dict(image_pb2.PixelFormat.items())


def test_colors_are_those_of_the_contract():
    for known, message in (
        (ColorMatrix, image_pb2.ColorMatrix),
        (ColorRange, image_pb2.ColorRange),
    ):
        named = {name.split("_", 2)[2]: value for name, value in message.items()}
        assert named == {one.name: one.value for one in known}


# Luma weights of red and blue: ITU-T H.273, table 4.
LUMA_WEIGHTS = {"BT601": (0.299, 0.114), "BT709": (0.2126, 0.0722), "BT2020": (0.2627, 0.0593)}


def rgb_by_formula(y, u, v, matrix: str, levels: str) -> np.ndarray:
    """Return float64 RGB of 8-bit YUV, by the definition of its matrix and range."""
    kr, kb = LUMA_WEIGHTS[matrix]
    if levels == "FULL":
        luma, blue_difference, red_difference = y / 255, (u - 128) / 255, (v - 128) / 255
    else:
        luma, blue_difference, red_difference = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = (luma + 2 * (1 - kr) * red_difference, luma + 2 * (1 - kb) * blue_difference)
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([red, green, blue], axis=-1) * 255, 0, 255)


@pytest.mark.parametrize("levels", ["UNSPECIFIED", "LIMITED", "FULL"])
@pytest.mark.parametrize("matrix", ["UNSPECIFIED", *LUMA_WEIGHTS])
def test_yuv_is_converted_by_its_matrix_and_range(matrix, levels):
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    y, u, v = (plane.reshape(-1, 52) for plane in np.meshgrid(steps, steps, steps))
    height, width = y.shape
    tall = y.repeat(2, axis=0).repeat(2, axis=1)
    image = raw(tall.tobytes() + u.tobytes() + v.tobytes(), "I420", 2 * width, 2 * height)
    image.color_matrix = f"COLOR_MATRIX_{matrix}"
    image.color_range = f"COLOR_RANGE_{levels}"
    defaults = (
        {"UNSPECIFIED": "BT601"}.get(matrix, matrix),
        {"UNSPECIFIED": "LIMITED"}.get(levels, levels),
    )
    wanted = rgb_by_formula(*(plane.astype(np.float64) for plane in (y, u, v)), *defaults)
    assert np.abs(shown(image)[::2, ::2] - wanted).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    ("format", "field", "value", "text"),
    [
        ("NV12", "color_matrix", 9, "is 9, must be one of COLOR_MATRIX_BT601, COLOR_MATRIX_BT709"),
        ("NV12", "color_range", 9, "is 9, must be one of COLOR_RANGE_LIMITED, COLOR_RANGE_FULL"),
        ("RGB", "color_matrix", 2, "is COLOR_MATRIX_BT709, which PIXEL_FORMAT_RGB has not"),
        ("GRAY", "color_range", 2, "is COLOR_RANGE_FULL, which PIXEL_FORMAT_GRAY has not"),
    ],
)
def test_color_that_is_unknown_or_of_no_yuv_is_refused(format, field, value, text):
    image = raw(bytes(36 * 32), format)
    setattr(image, field, value)
    with pytest.raises(InvalidImage, match=text) as refused:
        parse_raw(image, LIMITS.max_pixels)
    assert refused.value.field == f"image.raw.{field}"
