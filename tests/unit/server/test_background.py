from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from resnet50.v1 import inference_pb2
from resnet50_server.api.tasks import ClassifyTask, EmbedTask
from resnet50_server.errors import InvalidRequest
from resnet50_server.images.background import Background, parse_background, spell_background
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.source import PixelFormat, RawImage
from resnet50_server.images.transform import Transform
from tests.support import hostile
from tests.support.pictures import encode, photo_like, picture

SIDE = 32
DROPPED = Transform(resize=SIDE, crop=SIDE, mean=(0, 0, 0), std=(1, 1, 1))
RED = (250, 10, 20)
ALPHA = picture(SIDE, SIDE).getchannel(2).point(lambda value: 0 if value < 90 else value)


def shown(source, color=None) -> np.ndarray:
    return decode(source, replace(DROPPED, background=color), ImageLimits())


def with_hidden(color: tuple[int, int, int]) -> Image.Image:
    """A picture that has this colour wherever it is fully transparent."""
    rgb = photo_like(SIDE, SIDE)
    rgb.paste(color, mask=ALPHA.point(lambda value: 255 if value == 0 else 0))
    rgb.putalpha(ALPHA)
    return rgb


@pytest.mark.parametrize(
    ("text", "color"),
    [("white", (255,) * 3), ("black", (0,) * 3), ("#fA0114", (250, 1, 20)), ("none", None)],
)
def test_background_is_read_and_spelled(text, color):
    assert parse_background(text) == Background(color)
    assert parse_background(spell_background(color)) == Background(color)


@pytest.mark.parametrize("text", ["", "red", "#fff", "#12345g", "fffffff", "#ffffff\n", "WHITE"])
def test_other_backgrounds_are_refused_with_the_rule(text):
    with pytest.raises(ValueError, match=r'must be "white", "black", "#rrggbb", or "none"'):
        parse_background(text)


@pytest.mark.parametrize(("task", "options"), [(ClassifyTask, "Classify"), (EmbedTask, "Embed")])
def test_wrong_background_of_a_request_names_its_field(task, options):
    wrong = getattr(inference_pb2, f"{options}Options")(background="red")
    with pytest.raises(InvalidRequest, match="is 'red', must be") as refused:
        task(wrong, _Variant())
    assert refused.value.field == "options.background"


class _Variant:
    """A variant, as far as a task reads it before its options."""

    class spec:
        name, categories = "v", ("a", "b")


LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {},
}


@pytest.mark.parametrize("format", LOSSLESS)
def test_hidden_pixels_do_not_show_on_a_background(format):
    files = [encode(with_hidden(color), format, **LOSSLESS[format]) for color in ((0, 0, 0), RED)]
    assert not np.array_equal(shown(files[0]), shown(files[1]))
    assert np.array_equal(shown(files[0], (255,) * 3), shown(files[1], (255,) * 3))


@pytest.mark.parametrize("format", LOSSLESS)
def test_alpha_is_dropped_by_default_as_pillow_does(format):
    encoded = encode(with_hidden(RED), format, **LOSSLESS[format])
    assert np.array_equal(shown(encoded), Image.open(io.BytesIO(encoded)).convert("RGB"))


def composited(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Composite by the formula, in float64."""
    rgba = np.asarray(image, dtype=np.float64)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + np.array(color) * (1 - alpha)


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), RED], ids=str)
def test_alpha_is_composited_by_the_formula(color):
    image = with_hidden(RED)
    raw = RawImage(SIDE, SIDE, PixelFormat.RGBA, 0, image.tobytes())
    for source in (encode(image), raw):
        assert np.abs(shown(source, color) - composited(image, color)).max() <= 0.51


def test_raw_rgba_with_padded_rows_is_composited():
    image = with_hidden(RED)
    rows = np.asarray(image).reshape(SIDE, -1)
    padded = np.pad(rows, ((0, 0), (0, 12)), constant_values=99)
    raw = RawImage(SIDE, SIDE, PixelFormat.RGBA, rows.shape[1] + 12, padded.tobytes())
    assert np.abs(shown(raw, RED) - composited(image, RED)).max() <= 0.51


def palette_with_holes() -> bytes:
    image = picture(SIDE, SIDE).quantize(16)
    return encode(image, "PNG", transparency=bytes([0, 128]) + b"\xff" * 14)


def grey_png(depth: int, transparent: int) -> bytes:
    """A grey PNG that goes through all values of its depth, one of which is transparent."""
    values = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) % min(1 << depth, 256)
    if depth == 16:
        rows = (values * 257).astype(">u2").view(np.uint8).reshape(SIDE, -1)
    elif depth == 8:
        rows = values.astype(np.uint8)
    else:
        bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(SIDE, -1), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    chunk = hostile.chunk(b"tRNS", transparent.to_bytes(2, "big"))
    return hostile.png(SIDE, SIDE, chunk, lines=lines, depth=depth, colour=0)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_transparent_grey_of_a_png_becomes_the_background(depth):
    value = {16: 0x1111, 8: 17, 4: 3, 2: 2, 1: 1}[depth]
    encoded = grey_png(depth, value)
    plain, on_red = shown(encoded), shown(encoded, RED)
    level = {16: 17, 8: 17, 4: 51, 2: 170, 1: 255}[depth]
    holes = (plain == level).all(axis=-1)
    assert holes.any()
    assert (on_red[holes] == RED).all()
    assert np.array_equal(on_red[~holes], plain[~holes])


@pytest.mark.parametrize("depth", [8, 16])
def test_one_transparent_colour_of_a_png_becomes_the_background(depth):
    rgb = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    rgb[8:16] = (10, 200, 30)
    wide = rgb.astype(">u2") * 257 if depth == 16 else rgb
    lines = b"".join(b"\0" + row.tobytes() for row in wide)
    hole = b"".join(
        (value * (257 if depth == 16 else 1)).to_bytes(2, "big") for value in (10, 200, 30)
    )
    encoded = hostile.png(SIDE, SIDE, hostile.chunk(b"tRNS", hole), lines=lines, depth=depth)
    on_red = shown(encoded, RED)
    assert (on_red[8:16] == RED).all()
    assert (on_red[:8] == 0).all()


def test_png_whose_header_is_not_its_first_chunk_is_decoded():
    whole = grey_png(8, 17)
    gamma = hostile.chunk(b"gAMA", (45455).to_bytes(4, "big"))
    assert np.array_equal(shown(whole[:8] + gamma + whole[8:], RED), shown(whole, RED))


def test_palette_gif_and_grey_alpha_are_composited():
    holes = Image.new("P", (SIDE, SIDE), 1)
    holes.putpalette([0, 0, 0, 10, 200, 30])
    holes.paste(0, (0, 0, SIDE, 8))
    gif = encode(holes, "GIF", transparency=0)
    assert (shown(gif, RED)[:8] == RED).all()
    assert (shown(gif, RED)[8:] == (10, 200, 30)).all()
    grey_alpha = encode(with_hidden(RED).convert("LA"))
    wanted = composited(Image.open(io.BytesIO(grey_alpha)).convert("RGBA"), RED)
    assert np.abs(shown(grey_alpha, RED) - wanted).max() <= 0.51
    palette = palette_with_holes()
    wanted = composited(Image.open(io.BytesIO(palette)).convert("RGBA"), RED)
    assert np.abs(shown(palette, RED) - wanted).max() <= 0.51


def test_opaque_images_are_the_same_on_any_background():
    for encoded in (encode(picture(SIDE, SIDE), "JPEG"), encode(picture(SIDE, SIDE, "L"))):
        assert np.array_equal(shown(encoded), shown(encoded, RED))
