"""Where graphs are kept: whole or not at all, damaged ones noticed, old ones removed."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from pathlib import Path

import pytest

from resnet50_server.engines import graph_cache as graph_store
from resnet50_server.engines.graph_cache import RECENT_S, GraphCache
from resnet50_server.runtime.file_lock import file_lock

PLENTY = 2**40
KEYS = ["0" * 31 + digit for digit in "123"]


def put(store: GraphCache, key: str, content: bytes = b"graph") -> Path:
    return store.path(f"{key}.onnx", lambda path: path.write_bytes(content))


def unmakeable(path: Path) -> None:
    raise AssertionError("exported again")


def graphs(directory: Path) -> list[str]:
    """Return the keys of what is kept."""
    return sorted(path.name.split(".")[0] for path in directory.glob("*.onnx"))


def test_a_file_that_could_not_be_made_leaves_nothing_behind(tmp_path):
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), GraphCache(tmp_path, PLENTY) as store:
        store.path("graph.onnx", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_a_damaged_file_is_noticed_and_made_anew(tmp_path, caplog, damage):
    with GraphCache(tmp_path, PLENTY) as store:
        path = put(store, KEYS[0], b"graph" * 1000)
        assert store.path(path.name.split(".")[0] + ".onnx", unmakeable) == path
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[2500] ^= 1
        path.write_bytes(content[: {"flipped": None, "cut": 2500, "emptied": 0}[damage]])
        again = put(store, KEYS[0], b"graph" * 1000)
    assert again.read_bytes() == b"graph" * 1000
    assert graphs(tmp_path) == [KEYS[0]]
    assert f"graph_cache_dir: {path} is damaged and will be exported again" in caplog.text


def test_what_is_remembered_survives_a_broken_file(tmp_path):
    store = GraphCache(tmp_path, PLENTY)
    assert store.cached_json("rates.json", lambda: {"a": 1}) == {"a": 1}
    assert store.cached_json("rates.json", lambda: {"a": 2}) == {"a": 1}
    (kept,) = tmp_path.glob("rates.*.json")
    kept.write_text(kept.read_text().replace("1", "9"))
    assert store.cached_json("rates.json", lambda: {"a": 3}) == {"a": 3}
    assert GraphCache(tmp_path, PLENTY).cached_json("rates.json", lambda: {"a": 4}) == {"a": 3}


def test_what_a_server_that_died_has_left_goes_away(tmp_path):
    half, foreign = tmp_path / f"{KEYS[1]}.part.onnx", tmp_path / "notes.part.onnx"
    half.write_bytes(b"half")
    foreign.write_bytes(b"not ours")
    with GraphCache(tmp_path, PLENTY) as store:
        put(store, KEYS[0])
    assert not half.exists()
    assert foreign.exists()


def test_longest_unused_files_are_removed_beyond_the_bound(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    foreign = tmp_path / "holiday.onnx"
    foreign.write_bytes(bytes(10_000))
    with GraphCache(tmp_path, 250) as store:
        paths = [put(store, key, bytes(100)) for key in KEYS[:2]]
        for age_days, path in zip((3, 2), paths, strict=True):
            os.utime(path, (time.time() - age_days * 86400,) * 2)
        # Used again, so that the other one is now the longest unused.
        assert store.path(f"{KEYS[0]}.onnx", unmakeable) == paths[0]
        put(store, KEYS[2], bytes(100))
    assert graphs(tmp_path) == [KEYS[0], KEYS[2], "holiday"]
    assert f"removed {paths[1]}, unused for 2 days: max_graph_cache_bytes is 250" in caplog.text


@pytest.mark.parametrize("clock_s", [0, RECENT_S / 2, -RECENT_S / 2])
def test_what_another_server_may_be_about_to_open_stays(tmp_path, clock_s):
    with GraphCache(tmp_path, 0) as store:
        recent = put(store, KEYS[0])
        os.utime(recent, (time.time() - clock_s,) * 2)
        put(store, KEYS[1])
    assert graphs(tmp_path) == KEYS[:2]


def test_file_of_a_clock_that_was_set_back_can_be_removed(tmp_path):
    with GraphCache(tmp_path, 0) as store:
        os.utime(put(store, KEYS[0]), (time.time() + 86400,) * 2)
        put(store, KEYS[1])
    assert graphs(tmp_path) == [KEYS[1]]


def test_open_file_outlives_its_removal(tmp_path):
    """A file mapped by a running server stays readable, on POSIX."""
    with GraphCache(tmp_path, 0) as store:
        path = put(store, KEYS[0], b"in use")
        os.utime(path, (time.time() - 86400,) * 2)
        with path.open("rb") as in_use:
            put(store, KEYS[1])
            assert not path.exists()
            assert in_use.read() == b"in use"


def test_graph_cache_locked_for_too_long_is_skipped(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(graph_store, "LOCK_TIMEOUT_S", 0.1)
    with file_lock(tmp_path / ".lock", "hangs"), GraphCache(tmp_path, PLENTY) as store:
        path = put(store, KEYS[0])
        assert path.read_bytes() == b"graph"
        assert put(store, KEYS[0]) == path  # found there again
        remembered = [store.cached_json("rates.json", partial(int, one)) for one in "12"]
    assert remembered == [1, 1]
    assert graphs(tmp_path) == []
    assert "waiting for another process that exports graphs" in caplog.text
    assert "cannot be written (another process has held" in caplog.text
    assert not path.exists()
