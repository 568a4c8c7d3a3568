from __future__ import annotations

import base64
import gzip

import pytest

from resnet50_server.errors import InvalidImage
from resnet50_server.images.formats import require_format
from resnet50_server.images.signatures import identify
from tests.support.pictures import encode, picture


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return (4 + len(body)).to_bytes(4, "big") + body


DECODED = {
    "JPEG": encode(picture(), "JPEG"),
    "PNG": encode(picture()),
    "WEBP": encode(picture(), "WEBP"),
    "BMP": encode(picture(), "BMP"),
    "GIF": encode(picture(), "GIF"),
    "TIFF": encode(picture(), "TIFF"),
    "AVIF": encode(picture(), "AVIF"),
}


@pytest.mark.parametrize("name", DECODED)
def test_format_is_known_by_its_first_twelve_bytes(name):
    assert identify(DECODED[name]) == identify(DECODED[name][:12]) == name


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (ftyp(b"heic", b"mif1", b"heic"), "HEIC"),
        (ftyp(b"mif1", b"mif1", b"heic"), "HEIC"),
        (ftyp(b"heix"), "HEIC"),
        (ftyp(b"hevc", b"msf1"), "HEIC"),
        (ftyp(b"mif1", b"avif", b"miaf"), "AVIF"),
        (ftyp(b"avis", b"avif"), "AVIF"),
        (ftyp(b"msf1", b"avis"), "AVIF"),
        (b"II+\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"II*\0\x08\0\0\0WEBP", "TIFF"),
    ],
)
def test_brands_and_byte_orders_of_a_format_are_known(start, name):
    assert identify(start + bytes(20)) == name


NAMED = {
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(8),
    "JPEG 2000 ": b"\xff\x4f\xff\x51" + bytes(8),
    "JPEG XL": b"\xff\x0a" + bytes(10),
    "JPEG XL ": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG XR": b"II\xbc\x01" + bytes(8),
    "Photoshop": b"8BPS\0\1" + bytes(20),
    "CR3": ftyp(b"crx ", b"isom"),
    "RAF": b"FUJIFILMCCD-RAW 0201",
    "PDF": b"%PDF-1.4\n" + bytes(100),
    "SVG": b'<?xml version="1.0"?>\n<!-- made -->\n<svg xmlns="http://www.w3.org/2000/svg">',
    "SVG ": b"\xef\xbb\xbf<svg>",
    "HTML": b"<!doctype html><title>404</title>",
    "MPEG-4 video": ftyp(b"isom", b"mp42"),
    "QuickTime": ftyp(b"qt  "),
    "QuickTime ": b"\0\0\0\x08wide\0\0\0\0mdat",
    "WebM": b"\x1aE\xdf\xa3" + bytes(20),
    "AVI": b"RIFF\0\0\0\0AVI LIST",
    "gzip": gzip.compress(b"an image"),
    "ZIP": b"PK\x03\x04" + bytes(30),
    "Netpbm": b"P6\n2 2\n255\n" + bytes(12),
    "ICO": b"\0\0\1\0\1\0" + bytes(10),
    "DICOM": bytes(128) + b"DICM" + bytes(10),
    "OpenEXR": b"v/1\x01" + bytes(10),
    "data: URL": b"data:image/png;base64,iVBORw0KGgo",
    "base64": base64.b64encode(DECODED["JPEG"]),
    "base64 ": base64.b64encode(DECODED["PNG"]),
    "URL, which the server does not fetch": b"https://example.org/cat.jpg",
    "JSON": b'{"image": ""}',
}


@pytest.mark.parametrize("name", NAMED)
def test_other_format_is_refused_by_its_name(name):
    with pytest.raises(InvalidImage) as refused:
        require_format(NAMED[name])
    assert name.strip() in str(refused.value)
    assert "; send" in str(refused.value)
    assert "beginning with" not in str(refused.value)
    assert (refused.value.field, refused.value.kind) == ("image.encoded", "unsupported")


def test_unknown_bytes_are_refused_with_the_formats_that_are_decoded():
    with pytest.raises(InvalidImage, match=r"beginning with 01 02 .* JPEG, PNG, WebP, .* AVIF"):
        require_format(b"\x01\x02" * 10)


@pytest.mark.parametrize("start", [b"", b"\0", b"\0\0\0\x08ftyp", b"\0\0\0\0ftypheic", b"ftyp" * 9])
def test_short_or_broken_start_is_no_format_or_a_known_one(start):
    assert identify(start) in (None, "HEIC")
