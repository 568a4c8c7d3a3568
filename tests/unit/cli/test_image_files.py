"""Image files in folders and lists: all of them are found, and the rest is counted."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from resnet50_bulk.image_files import IMAGE_SUFFIXES, LeftOut, find_images
from resnet50_bulk.signatures import START_BYTES, image_format
from resnet50_cli.name_lists import chosen_names, listed_names
from resnet50_server.images.signatures import Format
from tests.support.pictures import encode, photo_like

JPEG = encode(photo_like(16, 16), "JPEG")
FORMATS = get_args(Format)


def found(folder: Path, left_out: LeftOut | None = None) -> list[str]:
    return [os.path.relpath(path, folder) for path in find_images([str(folder)], left_out)]


def write(folder: Path, *names: str, content: bytes = JPEG) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_suffixes_are_those_of_the_servers_formats():
    Image.init()
    suffixes = {
        suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS
    }
    assert suffixes <= IMAGE_SUFFIXES


@pytest.mark.parametrize("format", FORMATS)
def test_formats_of_the_server_are_known_by_their_bytes(format, tmp_path):
    Image.init()
    if format not in Image.SAVE:  # read by an extra that does not write
        return
    file = io.BytesIO()
    photo_like(32, 32).save(file, format)
    assert image_format(file.getvalue()[:START_BYTES]) is not None
    write(tmp_path, "download", content=file.getvalue())
    assert found(tmp_path) == ["download"]


@pytest.mark.parametrize(
    ("start", "format"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x14ftypavis\0\0\0\0avis", "AVIF"),
        (b"\0\0\0\x14ftypcrx \0\0\0\1isom", None),
        (b"\0\0\0\x10ftypisom\0\0\0\0heic", None),  # behind the end of its box
        (b"II+\0\x08\0\0\0", "TIFF"),
        (b"BM is how this text begins", None),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"", None),
    ],
)
def test_image_formats_are_told_from_other_files(start, format):
    assert image_format(start) == format


def test_suffixes_of_phones_and_browsers_are_taken(tmp_path):
    names = ["a.jpg", "b.HEIC", "c.jfif", "d.jpe", "e.avif", "f.JPG", "g.mpo", "h.heif", "i.Tif"]
    write(tmp_path, *names, "noext", "photo.download")
    assert found(tmp_path) == [*names, "noext", "photo.download"]


def test_files_left_out_are_counted_by_kind_in_one_line(tmp_path):
    write(tmp_path, "a.jpg")
    write(tmp_path, "1.txt", "2.txt", "sub/3.TXT", "BMW.txt", content=b"BM is no bitmap here")
    write(tmp_path, "clip.mov", content=b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    write(tmp_path, "paper", content=b"%PDF-1.7")
    write(tmp_path, "raw.NEF", content=b"II*\0" + bytes(200))
    write(tmp_path, ".hidden.jpg", ".cache/x.jpg")
    left_out = LeftOut()
    assert found(tmp_path, left_out) == ["a.jpg"]
    assert str(left_out) == (
        "left out 8 files: 4 .txt, 1 hidden, 1 .mov (MP4 video), 1 without a suffix (PDF), 1 .nef"
        " (camera raw); 1 folder: 1 hidden"
    )


def test_many_kinds_of_files_make_no_long_line(tmp_path):
    write(tmp_path, "a.jpg")
    write(tmp_path, *(f"{n}.x{n}" for n in range(30)), content=b"?")
    write(tmp_path, "b." + "y" * 200, content=b"?")
    left_out = LeftOut()
    found(tmp_path, left_out)
    assert len(str(left_out)) < 200
    assert str(left_out).endswith("23 of other kinds")


def test_companions_of_images_are_passed_over(tmp_path):
    write(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "@eaDir/a.jpg/SYNO.jpg")
    write(tmp_path, "__MACOSX/a.jpg", "desktop.ini")
    left_out = LeftOut()
    assert (found(tmp_path, left_out), str(left_out)) == (["a.jpg"], "")


def test_links_to_folders_are_followed_once(tmp_path):
    real = tmp_path / "real"
    write(real, "x.png", "below/y.png")
    folder = tmp_path / "photos"
    write(folder, "z.png")
    for name in ("link", "same"):
        (folder / name).symlink_to(real)
    (real / "below" / "up").symlink_to(folder)
    assert found(folder) == ["link/below/y.png", "link/x.png", "z.png"]


def test_links_within_the_tree_rename_no_image(tmp_path):
    write(tmp_path, "b/x.png")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b" / "top").symlink_to(tmp_path)
    assert found(tmp_path) == ["b/x.png"]
    write(tmp_path, ".store/y.png")
    (tmp_path / "c").symlink_to(".store")
    assert found(tmp_path) == ["b/x.png", "c/y.png"]


def test_files_that_are_no_regular_ones_are_left_out(tmp_path):
    write(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # to open it would wait for ever
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    left_out = LeftOut()
    assert found(tmp_path, left_out) == ["a.jpg"]
    assert str(left_out) == "left out 3 files: 2 linked to nothing, 1 not regular"


def test_images_are_in_the_order_of_their_paths(tmp_path):
    write(tmp_path, "a.jpg", "a/c.jpg", "a/b/d.jpg", "a-b.jpg", "a0.jpg", "é.jpg")
    assert found(tmp_path) == sorted(found(tmp_path))
    assert len(found(tmp_path)) == 6


def test_deep_trees_are_walked(tmp_path):
    deep = tmp_path
    for _ in range(150):
        deep = deep / "d"
    write(deep, "x.png")
    assert found(tmp_path) == ["d/" * 150 + "x.png"]


def test_current_folder_is_no_part_of_the_paths(tmp_path, monkeypatch):
    write(tmp_path, "a.jpg", "b/c.jpg")
    monkeypatch.chdir(tmp_path)
    assert list(find_images(["."])) == ["a.jpg", "b/c.jpg"]
    assert list(find_images(["b/", "./b"])) == ["b/c.jpg", "b/c.jpg"]


def test_folder_without_images_says_what_it_has(tmp_path):
    write(tmp_path, "notes.txt", content=b"no image")
    with pytest.raises(FileNotFoundError, match=r"no image files in this folder; left out 1 file"):
        found(tmp_path)


def listed(content: bytes, folder: Path, null: bool = False) -> list[str]:
    (folder / "list").write_bytes(content)
    return list(listed_names(str(folder / "list"), null))


def test_lists_are_read_by_line_or_by_nul(tmp_path):
    assert listed(b"\xef\xbb\xbfa.jpg\r\nb c.jpg\n\nlast", tmp_path) == ["a.jpg", "b c.jpg", "last"]
    assert listed(b"a\nb.jpg\0file:c.jpg\0", tmp_path, null=True) == ["a\nb.jpg", "file:c.jpg"]
    assert listed(b"-\n", tmp_path) == ["./-"]
    many = [f"{number}.jpg" for number in range(40_000)]
    assert listed("\n".join(many).encode(), tmp_path) == many


def test_lists_hold_names_that_are_not_utf8(tmp_path):
    names = [os.fsdecode(b"caf\xe9.jpg")] * 2
    assert listed(b"caf\xe9.jpg\nfile:caf%E9.jpg\n", tmp_path) == names


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"a.jpg\0b.jpg\0", "pass --null"), (b"x" * 200_000, "longer than 4096 bytes")],
)
def test_files_that_are_no_lists_are_refused(content, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        listed(content, tmp_path)


def test_names_are_required_and_stdin_is_read_once():
    with pytest.raises(ValueError, match="pass FILES"):
        chosen_names([], None, False)
    with pytest.raises(ValueError, match="both read the standard input"):
        chosen_names(["-"], "-", False)
    with pytest.raises(ValueError, match="--null"):
        chosen_names(["a"], None, True)
