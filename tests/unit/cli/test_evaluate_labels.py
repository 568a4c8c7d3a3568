"""Labelled images of `evaluate`: folders and files whose labels are certain, or an error."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path

import pytest

from resnet50_cli.evaluate.category_names import CategoryNames, read_names
from resnet50_cli.evaluate.labelled_images import (
    CategoryFolders,
    LabelFile,
    LabelledImages,
    ListedImages,
)
from resnet50_client.types import PublishedAccuracy
from tests.support.evaluations import PNG, image_folder, variant

PETS = ("cat", "Irish terrier", "crane", "crane", "café", "goldfish")


def names(categories=PETS, **other_names: int) -> CategoryNames:
    return CategoryNames(variant(categories), other_names)


def labels(images: LabelledImages, folder: Path) -> list[tuple[str, int]]:
    assert images.count == len(list(images))
    return [(os.path.relpath(image.path, folder), image.label) for image in images]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("cat", 0),
        ("Cat", 0),
        ("irish_terrier", 1),
        ("Irish-Terrier", 1),
        (unicodedata.normalize("NFD", "café"), 4),  # as macOS writes it
        ("5", 5),
        ("2", 2),
    ],
)
def test_categories_are_found_by_name_or_index(name, index):
    assert names().find([name], "x") == {name: index}


def test_exact_names_precede_similar_ones():
    found = names(("Cardigan", "cardigan")).find(["cardigan", "Cardigan"], "x")
    assert found == {"Cardigan": 0, "cardigan": 1}


def test_names_that_are_numbers_precede_indices():
    flowers = ("1", "10", "2")
    assert names(flowers).find(["1", "10", "2"], "x") == {"1": 0, "10": 1, "2": 2}


@pytest.mark.parametrize(
    ("categories", "found", "problem"),
    [
        (PETS, ["crane"], "x: 'crane' may be category 2 or 3 of pets; name it by its index"),
        (PETS, ["dog"], "x: 'dog' is no category of pets; name it like a category, e.g. 'cat'"),
        (PETS, ["6"], "'6' is no category of pets; .* or by its index, 0 to 5"),
        (PETS, ["-1"], "'-1' is no category"),
        (PETS, ["²"], "'²' is no category"),
        (PETS, ["n01440764"], "'n01440764' is a WordNet ID, .* pass --labels"),
        (("1", "10", "2"), ["1", "0"], "'1' may be category 0 or 1"),
        (("Cardigan", "cardigan"), ["CARDIGAN"], "may be category 0 or 1"),
    ],
)
def test_uncertain_names_are_refused_by_name(categories, found, problem):
    with pytest.raises(ValueError, match=problem):
        names(categories).find(found, "x")


def test_folders_of_imagenet_need_no_label_file():
    ids = [f"n{number:08}" for number in range(1000)]
    published = PublishedAccuracy("ImageNet-1K", 80.0, None)
    imagenet = variant([f"name {number}" for number in range(1000)], published=published)
    found = CategoryNames(imagenet, {}).find(ids[::-1], "x")
    assert found == {name: number for number, name in enumerate(ids)}
    with pytest.raises(ValueError, match="WordNet ID"):
        CategoryNames(imagenet, {}).find(ids[:999], "x")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("ids.json", json.dumps(["n01", "n02", "n03", "n04", "n05", "n06"])),
        ("ids.json", json.dumps({"0": ["n01", "cat"], "1": ["n02", "Irish_terrier"]})),
        ("ids.json", json.dumps({"n01": "cat", "n02": 1})),
        ("ids.txt", "n01\nn02\nn03\nn04\nn05\nn06\n"),
        ("ids.txt", "n01 cat, true cat\nn02 Irish terrier\nn03\nn04\nn05\nn06"),
        ("ids.TXT", "n01 cat\nn02 irish terrier\n"),
    ],
)
def test_label_files_map_wordnet_ids(file, content, tmp_path):
    (tmp_path / file).write_text(content)
    pets = variant(PETS)
    found = CategoryNames(pets, read_names(tmp_path / file, pets)).find(["n02", "n01"], "x")
    assert found == {"n02": 1, "n01": 0}


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("ids.json", "{", "is no JSON"),
        ("ids.json", "3", "neither a JSON object nor a list"),
        ("ids.json", '["n01"]', "has 1 names, pets has 6 categories"),
        ("ids.json", '{"n01": true}', "the value of 'n01' is no category"),
        ("ids.json", '{"n01": "dog"}', "'dog' is no category of pets"),
        ("ids.txt", "n01\nn02", "has 2 lines, pets has 6 categories"),
    ],
)
def test_label_files_that_do_not_fit_are_refused(file, content, problem, tmp_path):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=f"--labels .*{file}: .*{problem}"):
        read_names(tmp_path / file, variant(PETS))


def test_folders_give_their_images_a_label(tmp_path):
    image_folder(tmp_path, cat=2, goldfish=1)
    (tmp_path / "cat" / "more").mkdir()
    (tmp_path / "cat" / "more" / "x.jfif").write_bytes(PNG)
    (tmp_path / "cat" / "notes.txt").write_text("cats")
    (tmp_path / "top.png").write_bytes(PNG)
    for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        (tmp_path / folder).mkdir()
    images = CategoryFolders(tmp_path, names())
    assert labels(images, tmp_path) == [
        ("cat/0.png", 0),
        ("cat/1.png", 0),
        ("cat/more/x.jfif", 0),
        ("goldfish/0.png", 5),
    ]
    assert str(images.left_out) == (
        "left out 2 files: 1 in no category's folder, 1 .txt; 1 folder: 1 hidden"
    )


def test_links_between_folders_change_no_label(tmp_path):
    image_folder(tmp_path / "data", elsewhere=1)
    folder = image_folder(tmp_path / "val", cat=1)
    (folder / "cat" / "up").symlink_to("..")
    (folder / "goldfish").symlink_to(tmp_path / "data" / "elsewhere")
    images = CategoryFolders(folder, names())
    assert labels(images, folder) == [("cat/0.png", 0), ("goldfish/0.png", 5)]


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        ({}, "has no folders of categories; pass --labels"),
        ({"cat": 1, "goldfish": 0}, "goldfish: has no images"),
        ({"cat": 1, "0": 1}, "the folders '0' and 'cat' are both category 0"),
        ({"cat": 1, "dog": 1}, "'dog' is no category"),
        ({"crane": 1}, "'crane' may be category 2 or 3"),
    ],
)
def test_folders_without_a_certain_label_are_refused(folders, problem, tmp_path):
    image_folder(tmp_path, **folders)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*" + problem):
        CategoryFolders(tmp_path, names())


def test_listed_images_have_the_label_of_their_folder(tmp_path, monkeypatch):
    image_folder(tmp_path / "val", cat=2, goldfish=1, unknown=1)
    monkeypatch.chdir(tmp_path)
    listed = ["val/cat/1.png", str(tmp_path / "val" / "goldfish")]
    images = ListedImages(Path("val"), listed, names())
    assert labels(images, tmp_path) == [("val/cat/1.png", 0), ("val/goldfish/0.png", 5)]
    (tmp_path / "x.png").write_bytes(PNG)
    for outside in ("x.png", "val/x.png"):
        with pytest.raises(ValueError, match=f"{outside}: is in no category's folder of val"):
            ListedImages(Path("val"), [outside], names())


def label_file(folder: Path, content: bytes) -> LabelFile:
    path = folder / "labels.csv"
    path.write_bytes(content)
    return LabelFile(path, folder, names())


@pytest.mark.parametrize(
    "content",
    [
        b"a.png,cat\nsub/b.png,5\n",
        b"\xef\xbb\xbfpath,label\r\na.png,cat\r\nsub/b.png,goldfish\r\n",
        b"Label,width,Path\ncat,3,a.png\n\n0005,4,sub/b.png\n".replace(b"0005", b"5"),
    ],
)
def test_label_files_name_images_and_labels(content, tmp_path):
    assert labels(label_file(tmp_path, content), tmp_path) == [("a.png", 0), ("sub/b.png", 5)]


def test_label_files_hold_names_that_are_not_utf8(tmp_path):
    found = label_file(tmp_path, b"caf\xe9.png,cat\nfile:caf%E9.png,cat\n")
    assert [os.fsencode(image.path) for image in found] == [
        os.fsencode(tmp_path) + b"/caf\xe9.png"
    ] * 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no images"),
        (b"path,label\n", "has no images"),
        (b"a.png\n", "line 1: is not a path and a label"),
        (b"a.png,cat\nb.png,\n", "line 2: is not a path and a label"),
        (b"a.png,cat,3\n", "line 1: is not a path and a label"),
        (b"a.png,dog\n", "'dog' is no category"),
        (b'a.png,"' + b"x" * 200_000 + b'"\n', "field larger than field limit"),
    ],
)
def test_label_files_without_labels_are_refused(content, problem, tmp_path):
    with pytest.raises(ValueError, match=f"--labels .*labels.csv.*{problem}"):
        label_file(tmp_path, content)


def test_label_files_are_regular_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        LabelFile(tmp_path / "none.csv", tmp_path, names())
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(FileNotFoundError, match="read twice"):
        LabelFile(tmp_path / "pipe.csv", tmp_path, names())
