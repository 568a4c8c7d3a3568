"""`resnet50` on the folders and lists of files that people have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from resnet50_bulk.file_names import text_to_name
from tests.support.commands import resnet50
from tests.support.pictures import encode, photo_like

JPEG = encode(photo_like(32, 32), "JPEG")
# Bytes that are not UTF-8, as file systems of the 1990s and unzip leave them.
LATIN = b"caf\xe9.jpg"


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG)
    return folder


def embedded(file: Path, folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in np.load(file)["paths"].tolist()]


def test_folders_of_phones_and_browsers_are_embedded(null_address, tmp_path):
    folder = write(tmp_path / "d", "a.jpg", "b.HEIC", "c.jfif", "d.jpe", "e.avif", "noext")
    write(folder, ".DS_Store", "._a.jpg")
    (folder / "notes.txt").write_text("no image")
    (folder / "clip.mov").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    out = tmp_path / "v.npz"
    done = resnet50("embed", folder, "--out", out, "--json", server=null_address)
    assert done.returncode == 0, done.stderr
    assert embedded(out, folder) == ["a.jpg", "b.HEIC", "c.jfif", "d.jpe", "e.avif", "noext"]
    assert json.loads(done.stdout) == {"embedded": 6, "failed": 0, "out": str(out)}
    assert done.stderr.splitlines() == [b"left out 2 files: 1 .mov (MP4 video), 1 .txt"]


def test_linked_folders_are_embedded_once(null_address, tmp_path):
    real = write(tmp_path / "real", "x.png", "y.png")
    folder = write(tmp_path / "d", "a.jpg")
    (folder / "link").symlink_to(real)
    (folder / "link2").symlink_to(real)
    (real / "loop").symlink_to(folder)
    out = tmp_path / "v.npz"
    done = resnet50("embed", folder, "--out", out, server=null_address)
    assert (done.returncode, embedded(out, folder)) == (0, ["a.jpg", "link/x.png", "link/y.png"])


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_names_that_are_not_utf8_reach_vector_files(suffix, null_address, tmp_path):
    folder = write(tmp_path / "d", "a.jpg", os.fsdecode(LATIN))
    out = tmp_path / f"v{suffix}"
    done = resnet50("embed", folder, "--out", out, server=null_address)
    assert done.returncode == 0, done.stderr
    if suffix == ".npz":
        paths = np.load(out)["paths"].tolist()
    else:
        table = pyarrow.parquet.read_table(out)
        written = table["path"].to_pylist()
        assert written[1] == f"file:{folder}/caf%E9.jpg"
        paths = [text_to_name(path) for path in written]
        assert np.stack(table["vector"].to_pylist()).shape == (2, 2048)
    assert [path for path in paths if not os.path.exists(path)] == []
    assert os.fsencode(paths[1]).endswith(LATIN)


def test_interrupted_runs_know_names_that_are_not_utf8(null_address, tmp_path):
    folder = write(tmp_path / "d", os.fsdecode(LATIN))
    (folder / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "v.npz"
    assert resnet50("embed", folder, "--out", out, server=null_address).returncode == 1
    assert [os.path.exists(path) for path in np.load(out)["paths"].tolist()] == [True]


def test_names_that_are_not_utf8_reach_json(null_address, tmp_path):
    folder = write(tmp_path / "d", os.fsdecode(LATIN))
    done = resnet50("classify", folder, "--json", server=null_address)
    (line,) = done.stdout.decode().splitlines()
    path = json.loads(line)["path"]
    path.encode()  # without surrogates, which parsers of other languages refuse
    assert os.fsencode(text_to_name(path)) == os.fsencode(folder) + b"/" + LATIN
    text = resnet50("classify", folder, server=null_address).stdout
    assert b"caf\\udce9.jpg: tench" in text


@pytest.mark.parametrize("null", [False, True], ids=["lines", "nul"])
def test_names_are_read_from_a_list_on_stdin(null, null_address, tmp_path):
    folder = write(tmp_path / "d", "a.jpg", "b c.jpg", os.fsdecode(LATIN), "sub/x.png")
    names = [b"d/b c.jpg", b"d/" + LATIN, b"d/sub"]
    content = b"".join(name + (b"\0" if null else b"\n") for name in names)
    flags = ["--files-from", "-", *(["-0"] if null else [])]
    done = resnet50(
        "classify", "d/a.jpg", *flags, server=null_address, folder=tmp_path, input=content
    )
    assert done.returncode == 0, done.stderr
    shown = [line.partition(b": ")[0] for line in done.stdout.splitlines()]
    assert shown == [b"d/a.jpg", b"d/b c.jpg", rb"d/caf\udce9.jpg", b"d/sub/x.png"]
    out = tmp_path / "v.npz"
    done = resnet50(
        "embed", *flags, "--out", out, server=null_address, folder=tmp_path, input=content
    )
    assert (done.returncode, len(np.load(out)["paths"])) == (0, 3)
    assert embedded(out, Path("d"))[2] == "sub/x.png"
    assert folder.is_dir()


def test_lists_that_cannot_be_read_are_refused(null_address, tmp_path):
    done = resnet50("classify", "--files-from", tmp_path / "none", server=null_address)
    assert (done.returncode, b"none" in done.stderr) == (1, True)
    done = resnet50("classify", "--files-from", "-", server=null_address, input=b"a.jpg\0b.jpg\0")
    assert (done.returncode, b"pass --null" in done.stderr) == (2, True)
    done = resnet50("classify", server=null_address)
    assert (done.returncode, b"pass FILES" in done.stderr) == (2, True)
    for name in (b"Traceback", b"Exception"):
        assert name not in done.stderr
