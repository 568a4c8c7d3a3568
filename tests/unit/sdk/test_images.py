from __future__ import annotations

import io
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from resnet50.v1 import image_pb2
from resnet50_client import InvalidImageError, RawImage, VideoFrame
from resnet50_client.images import COLOR_MATRICES, COLOR_RANGES, PixelFormat, awaited, to_image
from tests.support import hostile
from tests.support.pictures import encode, photo_like, picture

RGB = np.asarray(photo_like(32, 24))
PNG = encode(Image.fromarray(RGB))


def format_name(raw: image_pb2.RawImage) -> str:
    return image_pb2.PixelFormat.Name(raw.pixel_format).removeprefix("PIXEL_FORMAT_")


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(PNG)
    return file


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path,
        lambda path: str(path),
        lambda _: PNG,
        lambda _: bytearray(PNG),
        lambda _: memoryview(PNG),
        lambda _: io.BytesIO(PNG),
        lambda path: path.open("rb"),
        lambda _: np.frombuffer(PNG, np.uint8),
        lambda _: np.frombuffer(PNG, np.uint8)[:, None],
    ],
    ids=[
        *("path", "str", "bytes", "bytearray", "memoryview", "BytesIO", "file"),
        *("array of a row, as by cv2.imencode", "array of a column, as by older ones"),
    ],
)
def test_file_travels_as_it_is(path, make):
    source = make(path)
    assert to_image(source).encoded == PNG
    if isinstance(source, io.BufferedReader):
        source.close()


@pytest.mark.parametrize(
    ("image", "expected_format", "pixels"),
    [
        (RGB, "RGB", RGB),
        (np.dstack([RGB, RGB[:, :, :1]]), "RGBA", np.dstack([RGB, RGB[:, :, :1]])),
        (RGB[:, :, 0], "GRAY", RGB[:, :, 0]),
        (RGB[:, :, :1], "GRAY", RGB[:, :, 0]),
        (RGB[::-1, ::-1], "RGB", RGB[::-1, ::-1]),
        (torch.from_numpy(RGB.copy()).permute(2, 0, 1), "RGB", RGB),
        (torch.from_numpy(RGB[None, :, :, 0].copy()), "GRAY", RGB[:, :, 0]),
        (Image.fromarray(RGB), "RGB", RGB),
        (Image.fromarray(RGB[:, :, 0]), "GRAY", RGB[:, :, 0]),
    ],
)
def test_pixels_travel_row_by_row(image, expected_format, pixels):
    raw = to_image(image).raw
    assert (raw.width, raw.height, format_name(raw)) == (32, 24, expected_format)
    assert raw.pixels == np.ascontiguousarray(pixels).tobytes()


def test_layout_of_an_array_can_be_named():
    assert format_name(to_image(RGB, "BGR").raw) == "BGR"


@pytest.mark.parametrize("pixel_format", ["NV12", "I420"])
def test_camera_frames_are_planes_one_below_the_other(pixel_format):
    raw = to_image(np.zeros((36, 32), dtype=np.uint8), pixel_format).raw
    assert (raw.width, raw.height, format_name(raw)) == (32, 24, pixel_format)
    assert len(raw.pixels) == 36 * 32


def test_pil_image_is_turned_upright_as_its_file_would_be():
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(encode(Image.fromarray(RGB), "PNG", exif=exif)))
    raw = to_image(opened).raw
    assert (raw.width, raw.height) == (24, 32)
    assert raw.pixels == np.rot90(RGB, -1).tobytes()


def test_deep_pil_image_is_scaled_not_clipped():
    deep = Image.fromarray(np.full((8, 8), 257 * 130, dtype=np.uint16))
    assert to_image(deep).raw.pixels == bytes([130]) * 64


def test_pil_palette_becomes_rgb():
    image = picture(16, 16).quantize(8)
    assert to_image(image).raw.pixels == image.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("image", "options", "text"),
    [
        (RGB.astype(np.float32) / 255, {}, "convert it to uint8"),
        (RGB.transpose(2, 0, 1), {}, r"does not have 1, 3 or 4 channels"),
        (RGB[None], {}, "send one at a time"),
        (np.zeros((0, 4, 3), np.uint8), {}, "send one at a time"),
        (RGB, {"pixel_format": "RGBA"}, "does not match pixel_format 'RGBA' with its 4"),
        (RGB, {"pixel_format": "HSV"}, "is 'HSV', must be one of RGB, BGR, RGBA, GRAY, NV12, I420"),
        (RGB[:, :, 0], {"pixel_format": "RGB"}, "does not match pixel_format"),
        (np.zeros((25, 32), np.uint8), {"pixel_format": "NV12"}, r"height \* 3 / 2"),
        (torch.zeros(24, 32, 3, dtype=torch.uint8), {}, r"not \[3, height, width\]"),
        (Image.new("F", (4, 4)), {}, "mode F"),
        (PNG, {"pixel_format": "RGB"}, r"goes with an array only.*np.frombuffer"),
        (np.zeros(24 * 32 * 3, np.uint8), {"pixel_format": "RGB"}, "send one at a time"),
    ],
)
def test_unusable_pixels_are_refused_with_the_reason(image, options, text):
    with pytest.raises(InvalidImageError, match=text):
        to_image(image, **options)


def test_unknown_type_and_text_file_are_type_errors(path):
    with pytest.raises(TypeError, match="int is not a path"):
        to_image(7)
    with (
        path.open("r", encoding="latin-1") as text,
        pytest.raises(TypeError, match="open the file with 'rb'"),
    ):
        to_image(text)


def test_missing_file_is_the_builtin_error():
    with pytest.raises(FileNotFoundError):
        to_image("no/such/file.jpg")


class Upload:
    """A file as Starlette and FastAPI give it."""

    def __init__(self, content: bytes = PNG) -> None:
        self.file = io.BytesIO(content)

    async def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


@pytest.mark.filterwarnings("error")
def test_file_that_is_read_asynchronously_says_what_to_do():
    with pytest.raises(TypeError, match=r"Upload is asynchronous; pass its `.file`, or .*AsyncCl"):
        to_image(Upload())
    assert to_image(Upload().file).encoded == PNG


async def test_file_that_is_read_asynchronously_is_awaited():
    assert await awaited(Upload()) == PNG
    for other in (PNG, "a.png", RGB, io.BytesIO(PNG)):
        assert await awaited(other) is other


async def test_file_that_was_read_before_is_told_to_go_back():
    upload, file = Upload(), io.BytesIO(PNG)
    await upload.read()
    file.read()
    with pytest.raises(InvalidImageError, match=r"no bytes.*seek\(0\)") as refused:
        await awaited(upload)
    assert refused.value.source is upload
    with pytest.raises(InvalidImageError, match=r"no bytes.*seek\(0\)"):
        to_image(file)


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([PNG, PNG], TypeError),
        ((RGB,), TypeError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), InvalidImageError),
    ],
    ids=["list", "tuple", "batch of a DataLoader"],
)
def test_several_images_are_told_the_methods_that_take_them(images, error):
    with pytest.raises(error, match=r"embed_many"):
        to_image(images)


# Larger than what is sent as pixels; flat, so that the file is small.
LARGE = Image.new("RGB", (1200, 900), "teal")


def large_jpeg(**options: object) -> bytes:
    return encode(LARGE, "JPEG", **options)


def test_large_jpeg_that_pillow_has_not_decoded_is_sent_as_its_file(tmp_path):
    content = large_jpeg()
    path = tmp_path / "large.jpg"
    path.write_bytes(content)
    with Image.open(path) as opened, Image.open(io.BytesIO(content)) as in_memory:
        assert to_image(opened).encoded == to_image(in_memory).encoded == content
        # It can still be used, and sent again.
        assert to_image(opened).encoded == content
        assert opened.getpixel((0, 0)) == in_memory.getpixel((0, 0))


def orientation_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def decoded(image: Image.Image) -> None:
    image.load()


def changed(image: Image.Image) -> None:
    image.paste("red", (0, 0, 10, 10))


def drafted(image: Image.Image) -> None:
    image.draft("RGB", (600, 450))


def turned(image: Image.Image) -> None:
    image.getexif()[0x0112] = 1


def shrunk(image: Image.Image) -> None:
    image.thumbnail((1190, 1190))


@pytest.mark.parametrize("change", [decoded, changed, drafted, turned, shrunk])
def test_large_jpeg_that_may_have_been_changed_is_sent_as_pixels(change):
    content = large_jpeg(exif=orientation_of(6))
    image, expected = (Image.open(io.BytesIO(content)) for _ in range(2))
    change(image)
    change(expected)
    raw = to_image(image).raw
    assert raw.pixels == ImageOps.exif_transpose(expected).tobytes()


def test_large_image_of_another_format_is_sent_as_pixels():
    with Image.open(io.BytesIO(encode(LARGE, "PNG"))) as opened:
        assert to_image(opened).raw.pixels == LARGE.tobytes()


def test_large_jpeg_whose_file_is_closed_fails_with_a_typed_error():
    file = io.BytesIO(large_jpeg())
    opened = Image.open(file)
    file.close()
    with pytest.raises(InvalidImageError, match="cannot be read"):
        to_image(opened)


def test_column_whose_layout_is_named_is_pixels():
    raw = to_image(RGB[:, :1, 0], "GRAY").raw
    assert (raw.width, raw.height) == (1, 24)


def test_url_is_not_taken_for_a_path_and_not_shown():
    with pytest.raises(
        InvalidImageError, match="is a URL, which the SDK does not fetch"
    ) as refused:
        to_image("rtsp://user:s3cret@camera/stream")
    assert "s3cret" not in str(refused.value)


def frame(color_matrix: str | None = None, color_range: str | None = None, **of) -> VideoFrame:
    planes = np.zeros((36, 32), dtype=np.uint8)
    return VideoFrame(planes, of.get("pixel_format", "NV12"), 0.0, 0, color_matrix, color_range)


def test_matrix_and_range_of_yuv_are_sent():
    raw = to_image(frame("BT709", "full")).raw
    assert raw.color_matrix == image_pb2.COLOR_MATRIX_BT709
    assert raw.color_range == image_pb2.COLOR_RANGE_FULL
    planes = np.zeros((36, 32), dtype=np.uint8)
    raw = to_image(RawImage(planes, "I420", "BT2020", "limited")).raw
    assert raw.color_matrix == image_pb2.COLOR_MATRIX_BT2020
    assert raw.color_range == image_pb2.COLOR_RANGE_LIMITED


def test_matrix_and_range_are_left_to_the_server_by_default():
    raw = to_image(RawImage(np.zeros((36, 32), dtype=np.uint8), "NV12")).raw
    assert (raw.color_matrix, raw.color_range) == (0, 0)


def test_pixel_formats_are_those_of_the_contract():
    names = {name.removeprefix("PIXEL_FORMAT_") for name, _ in image_pb2.PixelFormat.items()}
    assert names - {"UNSPECIFIED"} == set(get_args(PixelFormat))


def test_colors_are_those_of_the_contract():
    matrices = {f"COLOR_MATRIX_{name}" for name in COLOR_MATRICES}
    ranges = {f"COLOR_RANGE_{name.upper()}" for name in COLOR_RANGES}
    assert matrices == set(image_pb2.ColorMatrix.keys()[1:])
    assert ranges == set(image_pb2.ColorRange.keys()[1:])


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (frame("BT.709"), r"color_matrix: is 'BT.709', must be one of BT601, BT709, BT2020"),
        (frame(None, "FULL"), r"color_range: is 'FULL', must be one of limited, full"),
        (RawImage(RGB, "RGB", "BT709"), "color_matrix: .* goes with pixel_format NV12 and I420"),
        (VideoFrame(PNG, None, 0.0, 0, "BT709"), "goes with pixel_format NV12 and I420 only"),
    ],
)
def test_wrong_matrix_or_range_is_refused_with_the_field(image, text):
    with pytest.raises(InvalidImageError, match=text) as refused:
        to_image(image)
    assert refused.value.field in ("image.raw.color_matrix", "image.raw.color_range")


CLEAR = Image.fromarray(np.dstack([RGB, RGB[:, :, 0]]))
WITH_ALPHA = {
    "RGBA": CLEAR,
    "LA": CLEAR.convert("LA"),
    "PA": CLEAR.convert("RGB").quantize(8).convert("PA"),
    "La": CLEAR.convert("LA").convert("La"),
    "RGBa": CLEAR.convert("RGBa"),
    "palette with holes": Image.open(
        io.BytesIO(encode(CLEAR.convert("RGB").quantize(8), transparency=bytes([0, 99])))
    ),
}


@pytest.mark.parametrize("image", WITH_ALPHA.values(), ids=WITH_ALPHA)
def test_pil_image_with_alpha_is_sent_with_it(image):
    raw = to_image(image).raw
    assert format_name(raw) == "RGBA"
    straight = image.convert(image.mode.upper()) if image.mode[-1] == "a" else image
    assert raw.pixels == straight.convert("RGBA").tobytes()


def exif_of(*tags: tuple[int, int, int, int]) -> bytes:
    return b"Exif\0\0" + hostile.exif(*tags)


BAD_EXIF = {
    "text for a number": exif_of((0x0112, 2, 3, int.from_bytes(b"up\0\0", "little"))),
    "no number": exif_of((0x0112, 3, 0, 0)),
    "unknown type": exif_of((0x0112, 99, 1, 6)),
    "cut off": b"Exif\0\0II*\0",
    "another order": b"Exif\0\0HI*\0\x08\0\0\0\0\0",
}


@pytest.mark.parametrize("exif", BAD_EXIF.values(), ids=BAD_EXIF)
def test_pil_image_with_unreadable_exif_is_sent_as_it_is_stored(exif):
    jpeg = encode(Image.fromarray(RGB), "JPEG")
    content = jpeg[:2] + hostile.segment(0xE1, exif) + jpeg[2:]
    raw = to_image(Image.open(io.BytesIO(content))).raw
    assert raw.pixels == to_image(Image.open(io.BytesIO(jpeg))).raw.pixels


class Unreadable(Image.Image):
    """An image whose file breaks as it is read."""

    def load(self):
        raise SyntaxError("broken PNG file")


def test_pil_image_that_breaks_as_it_is_read_fails_with_a_typed_error():
    broken = Unreadable()
    with pytest.raises(InvalidImageError, match=r"cannot be read \(SyntaxError: broken PNG file\)"):
        to_image(broken)
    closed = Image.new("RGB", (4, 4))
    closed.close()
    with pytest.raises(InvalidImageError, match="cannot be read"):
        to_image(closed)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pil_image_is_turned_by_every_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(Image.fromarray(RGB), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    raw = to_image(Image.open(io.BytesIO(content))).raw
    assert (raw.width, raw.height) == upright.size
    assert raw.pixels == upright.tobytes()
