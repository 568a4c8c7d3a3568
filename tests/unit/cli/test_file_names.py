"""File names in outputs that hold UTF-8 only."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from resnet50_bulk.file_names import name_to_text, text_to_name


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_every_name_is_restored_from_valid_text(name):
    path = os.fsdecode(name)
    text = name_to_text(path)
    assert text_to_name(text.encode("utf-8").decode("utf-8")) == path


def test_utf8_names_are_written_as_they_are():
    for name in ("photos/café.jpg", "a%20b.jpg", r"C:\photos\a.jpg", "a\nb.jpg"):
        assert name_to_text(name) == name


def test_other_names_become_file_uris():
    assert name_to_text(os.fsdecode(b"d/caf\xe9 1%.jpg")) == "file:d/caf%E9%201%25.jpg"
    assert name_to_text("file:a.jpg") == "file:file%3Aa.jpg"
