"""Sources of bulk runs: every image once, in order, with the fingerprint of its file."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import lance
import pyarrow as pa
import pyarrow.parquet
import pytest

from resnet50_bulk.image_files import LeftOut
from resnet50_bulk.source import FileFingerprint
from resnet50_bulk.sources import source_of
from resnet50_bulk.store_source import StoreSource
from resnet50_bulk.table_source import TableSource
from resnet50_bulk.tar_source import TarSource


def content(image) -> bytes:
    if isinstance(image, str):
        return Path(image).read_bytes()
    return image if isinstance(image, bytes) else image.read(2**20)


def read(source) -> dict[str, bytes]:
    return {name: content(image) for name, image in source.images(list(source.names()))}


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_table(file: Path, /, **columns) -> Path:
    table = pa.table(columns)
    if file.suffix == ".lance":
        lance.write_dataset(table, str(file))
    else:
        pyarrow.parquet.write_table(table, file)
    return file


@pytest.fixture
def store():
    """An object store in memory."""
    found = fsspec.filesystem("memory")
    yield found
    found.rm("/", recursive=True)


def test_files_folders_and_patterns_are_image_files(tmp_path):
    for name in ("a.jpg", "b.png", "note.txt", "d/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    left_out = LeftOut()
    found = read(source_of([tmp_path / "a.jpg", tmp_path / "d"], left_out))
    assert found == {str(tmp_path / "a.jpg"): b"a.jpg", str(tmp_path / "d/c.jpg"): b"d/c.jpg"}
    assert list(source_of(str(tmp_path / "**/*.jpg")).names()) == [
        str(tmp_path / "a.jpg"),
        str(tmp_path / "d/c.jpg"),
    ]
    assert list(source_of(tmp_path, left_out).names())[-1] == str(tmp_path / "d/c.jpg")
    assert ".txt" in str(left_out)


def test_folder_whose_name_is_a_pattern_is_a_folder(tmp_path):
    folder = tmp_path / "photos[1]"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"a")
    assert list(source_of(folder).names()) == [str(folder / "a.jpg")]


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_members_of_archives_are_images_by_suffix(suffix, mode, tmp_path):
    one = {"0/a.jpg": b"A", "0/a.json": b"{}", "b.PNG": b"B", "link.txt": b""}
    first = write_tar(tmp_path / f"0{suffix}", one, mode)
    second = write_tar(tmp_path / f"1{suffix}", {"a.jpg": b"C"}, mode)
    source = source_of([first, second])
    assert isinstance(source, TarSource)
    names = list(source.names())
    assert names == [f"tar://0/a.jpg::{first}", f"tar://b.PNG::{first}", f"tar://a.jpg::{second}"]
    assert read(source) == dict(zip(names, [b"A", b"B", b"C"], strict=True))
    assert dict(source.images(names[1:])) == {names[1]: b"B", names[2]: b"C"}
    status = second.stat()
    assert source.fingerprint(names[2]) == FileFingerprint(status.st_size, status.st_mtime_ns)


def test_name_of_an_archive_member_opens_by_fsspec(tmp_path):
    source = TarSource([str(write_tar(tmp_path / "0.tar", {"d/a.jpg": b"A"}))])
    (name,) = source.names()
    with fsspec.open(name, "rb") as file:
        assert file.read() == b"A"


@pytest.mark.parametrize("cut", [700, 0])
def test_archive_without_its_end_is_refused_by_name(cut, tmp_path):
    path = write_tar(tmp_path / "0.tar", {"a.jpg": bytes(600), "b.jpg": bytes(600)})
    path.write_bytes(path.read_bytes()[:cut] or b"no archive" * 100)
    with pytest.raises(ValueError, match=r"0\.tar is no whole tar archive"):
        read(TarSource([str(path)]))


def test_two_members_of_one_name_are_refused(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ValueError, match=r"two members 'a\.jpg'"):
        list(TarSource([str(path)]).names())


def test_huge_member_is_an_error_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet50_bulk.tar_source.MAX_MEMBER_BYTES", 100)
    source = TarSource([str(write_tar(tmp_path / "0.tar", {"a.jpg": bytes(101), "b.jpg": b"B"}))])
    (_, large), (_, small) = source.images(list(source.names()))
    assert isinstance(large, OSError)
    assert "101 bytes, the limit in archives is 100" in str(large)
    assert small == b"B"


@pytest.mark.parametrize("suffix", [".parquet", ".lance"])
def test_tables_have_bytes_paths_or_both(suffix, tmp_path):
    (tmp_path / "c.jpg").write_bytes(b"C")
    path = str(tmp_path / "c.jpg")
    plain = write_table(tmp_path / f"plain{suffix}", id=[7, 9], image=[b"A", b"B"])
    assert read(source_of(plain)) == {"7": b"A", "9": b"B"}
    paths = write_table(tmp_path / f"paths{suffix}", path=[path])
    assert read(source_of(paths)) == {path: b"C"}
    both = [{"bytes": b"A", "path": "a.jpg"}, {"bytes": None, "path": path}]
    structs = write_table(tmp_path / f"structs{suffix}", image=both)
    assert read(source_of(structs)) == {f"{structs}#0": b"A", f"{structs}#1": b"C"}


@pytest.mark.parametrize("suffix", [".parquet", ".lance"])
def test_columns_of_other_names_are_named(suffix, tmp_path):
    path = str(write_table(tmp_path / f"t{suffix}", key=["x", "y"], photo=[b"A", b"B"]))
    source = TableSource([path], image="photo", name="key")
    assert read(source) == {"x": b"A", "y": b"B"}
    assert dict(source.images(["y"])) == {"y": b"B"}
    with pytest.raises(ValueError, match="its columns are key, photo"):
        source_of(path)
    with pytest.raises(ValueError, match="no name column label"):
        TableSource([path], image="photo", name="label")


def test_order_is_kept_over_many_batches_of_rows(tmp_path):
    numbers = list(range(300))
    images = [str(number).encode() for number in numbers]
    path = write_table(tmp_path / "t.parquet", id=numbers, image=images)
    source = source_of(path)
    assert list(read(source).values()) == images
    assert [name for name, _ in source.images(["5", "250", "299"])] == ["5", "250", "299"]


def test_rows_before_the_wanted_ones_are_not_read(tmp_path, monkeypatch):
    numbers = list(range(100))
    images = [str(number).encode() for number in numbers]
    first, second = tmp_path / "0.parquet", tmp_path / "1.parquet"
    pyarrow.parquet.write_table(
        pa.table({"id": numbers, "image": images}), first, row_group_size=10
    )
    write_table(second, id=[100], image=[b"100"])
    read_columns = []
    iter_batches = pyarrow.parquet.ParquetFile.iter_batches

    def recorded(self, rows, row_groups, columns):
        read_columns.append((*columns, row_groups[0]))
        return iter_batches(self, rows, row_groups=row_groups, columns=columns)

    source = source_of([first, second])
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", recorded)
    assert dict(source.images(["57", "100"])) == {"57": b"57", "100": b"100"}
    assert ("image", 5) in read_columns
    assert ("image", 0) in read_columns  # of the second table
    assert read_columns.count(("image", 0)) == 1


@pytest.mark.parametrize("suffix", [".parquet", ".lance"])
def test_rows_without_names_are_found_by_number(suffix, tmp_path):
    images = [str(number).encode() for number in range(100)]
    path = write_table(tmp_path / f"t{suffix}", image=images)
    source = source_of(path)
    wanted = [f"{path}#{number}" for number in (40, 77)]
    assert list(source.images(wanted)) == [(wanted[0], b"40"), (wanted[1], b"77")]


def test_row_without_an_image_is_an_error_in_its_place(tmp_path):
    source = source_of(write_table(tmp_path / "t.parquet", id=[1, 2], image=[b"A", None]))
    (_, one), (_, two) = source.images(["1", "2"])
    assert one == b"A"
    assert isinstance(two, OSError)


def test_names_that_are_not_unique_are_refused(tmp_path):
    source = source_of(write_table(tmp_path / "t.parquet", id=[1, 1], image=[b"A", b"B"]))
    with pytest.raises(ValueError, match="column 'id' contains '1' twice"):
        list(source.names())


def test_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"nothing of the kind" * 10)
    with pytest.raises(ValueError, match=r"t\.parquet is no Parquet file"):
        source_of(tmp_path / "t.parquet")


def test_objects_below_an_address_are_images_by_suffix(store):
    for name in ("photos/a.jpg", "photos/d/b.png", "photos/note.txt", "other.jpg"):
        store.pipe(f"/{name}", name.encode())
    source = source_of("memory://photos")
    assert isinstance(source, StoreSource)
    found = read(source)
    assert list(found.values()) == [b"photos/a.jpg", b"photos/d/b.png"]
    assert all(name.startswith("memory://") for name in found)
    assert list(read(source_of("memory://photos/*.jpg")).values()) == [b"photos/a.jpg"]
    assert list(read(source_of("memory://other.jpg")).values()) == [b"other.jpg"]


def test_changed_object_has_another_fingerprint(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"A")
    prints = []
    for seconds in (1, 2):
        os.utime(tmp_path / "a.jpg", (seconds, seconds))
        source = StoreSource([f"local://{tmp_path}"])
        (name,) = source.names()
        prints.append(source.fingerprint(name))
    assert prints[0].size == prints[1].size == 1
    assert prints[0] != prints[1]


def test_archives_and_tables_are_read_from_object_stores(store, tmp_path):
    store.put(str(write_tar(tmp_path / "0.tar", {"a.jpg": b"A"})), "/d/0.tar")
    store.put(str(write_table(tmp_path / "t.parquet", id=[1], image=[b"B"])), "/d/t.parquet")
    assert read(source_of("memory://d/0.tar")) == {"tar://a.jpg::memory://d/0.tar": b"A"}
    assert read(source_of("memory://d/t.parquet")) == {"1": b"B"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.tar", "b.jpg"], "archives and files: pass one kind"),
        (["t.parquet", "s3://bucket"], "object stores and tables"),
        (["nothing-*.jpg"], "no file matches"),
        (["memory://empty"], "no image files there"),
        (["nosuch://bucket"], "nosuch"),
    ],
)
def test_source_that_cannot_be_read_says_why(names, words):
    with pytest.raises((ValueError, OSError), match=words):
        list(source_of(names).names())
