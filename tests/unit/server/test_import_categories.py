"""Names of categories from files and folders."""

from __future__ import annotations

import json

import pytest

from resnet50_server.variants.importing.categories import categories_in, read_categories

NAMES = ["tench", "goldfish", "great white shark"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "tench\ngoldfish\ngreat white shark\n"),
        ("names.txt", "\ufefftench\r\ngoldfish\r\ngreat white shark\r\n\r\n"),
        ("names.txt", "0 tench\n1 goldfish\n2 great white shark"),
        ("names.txt", "0: tench\n1: goldfish\n2: great white shark"),
        ("names.txt", "n01440764 tench\nn01443537 goldfish\nn01484850 great white shark"),
        ("names.json", json.dumps(NAMES)),
        ("names.json", json.dumps({"0": NAMES[0], "2": NAMES[2], "1": NAMES[1]})),
        ("names.json", json.dumps({name: index for index, name in enumerate(NAMES)})),
        ("index.json", json.dumps({"0": ["n0", NAMES[0]], "1": ["n1", NAMES[1]], "2": NAMES[2]})),
        ("config.json", json.dumps({"id2label": dict(enumerate(NAMES)), "depths": [3, 4]})),
        ("labels.txt", repr(dict(enumerate(NAMES)))),
    ],
)
def test_names_are_read_from_a_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_categories(path) == NAMES


def test_names_are_those_of_folders_in_their_order(tmp_path):
    for name in ("b", "a10", "a9", "C"):
        (tmp_path / name).mkdir()
    (tmp_path / "README").touch()
    assert read_categories(tmp_path) == ["C", "a10", "a9", "b"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty: a name in each line is expected"),
        ("cat\n\ndog\n", "line 2 is empty"),
        ('{"0": "cat", "2": "dog"}', "names by index from 0 without gaps"),
        ("[1, 2]", "a list of names"),
        ("[]", "a list of names"),
        ("{cat", "neither JSON nor a name in each line"),
        ("[" * 100_000, "neither JSON nor"),
        ("__import__('os')", None),  # a name like any other
    ],
)
def test_unusable_names_are_refused_with_the_reason(tmp_path, text, reason):
    path = tmp_path / "names"
    path.write_text(text)
    if reason is None:
        assert read_categories(path) == [text]
        return
    with pytest.raises(ValueError, match=reason) as refused:
        read_categories(path)
    assert str(path) in str(refused.value)


def test_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_categories(tmp_path / "missing.txt")
    (tmp_path / "latin1.txt").write_bytes("Käfer".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_categories(tmp_path / "latin1.txt")


def test_folder_of_splits_is_refused(tmp_path):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="has the folders train, val: name one of them"):
        read_categories(tmp_path)


def test_entry_of_another_count_is_not_taken():
    checkpoint = {"classes": ["a", "b"], "hyper_parameters": {"class_names": NAMES}}
    assert categories_in(checkpoint, 3) == ("hyper_parameters.class_names", NAMES)
    assert categories_in(checkpoint, 4) is None
