"""Images for the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pictures import encode, photo_like


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two; to generate the sixteen of `bench` takes most of a second."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(2):
        (folder / f"{seed}.jpg").write_bytes(encode(photo_like(320, 240, seed), "JPEG"))
    return folder
