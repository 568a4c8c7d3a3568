"""The checkpoint of `resnet50 embed`: every result once, also after a kill, in little memory."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from resnet50_bulk.checkpoint import (
    COMMIT_IMAGES,
    Checkpoint,
    EmbeddingSpaceChanged,
    FileFingerprint,
)
from resnet50_bulk.provenance import Provenance
from tests.support.embeddings import DIMENSION, embedded

PRINT = FileFingerprint(5, 7)
LATIN = "caf\udce9.jpg"


def fill(checkpoint: Checkpoint, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        checkpoint.add(f"{number}.jpg", PRINT, embedded(number))


def test_results_are_there_after_a_reopening(tmp_path):
    with Checkpoint(tmp_path / "c") as checkpoint:
        fill(checkpoint, 3)
        checkpoint.add(LATIN, FileFingerprint(2**40, -5), embedded(9))
        checkpoint.add_error("broken.jpg", PRINT, f"{LATIN}: no image")
        checkpoint.flush()
    with Checkpoint(tmp_path / "c") as checkpoint:
        assert len(checkpoint) == 4
        assert checkpoint.fingerprint(LATIN) == FileFingerprint(2**40, -5)
        assert not checkpoint.contains("broken.jpg")
        assert dict(checkpoint.errors()) == {"broken.jpg": "caf\\udce9.jpg: no image"}
        vectors = checkpoint.vectors([LATIN, "1.jpg"])
        assert vectors[:, 0].tolist() == [9.0, 1.0]
        assert checkpoint.provenance == embedded(0).provenance


def test_newer_result_of_an_image_replaces_the_older(tmp_path):
    with Checkpoint(tmp_path / "c") as checkpoint:
        fill(checkpoint, 2)
        checkpoint.flush()
        checkpoint.add("0.jpg", FileFingerprint(6, 8), embedded(50))
        checkpoint.add_error("1.jpg", PRINT, "no image")
        checkpoint.flush()
        assert (len(checkpoint), checkpoint.fingerprint("0.jpg")) == (1, FileFingerprint(6, 8))
        vectors = checkpoint.vectors(["0.jpg"])
        assert vectors[0, 0] == 50.0
        with pytest.raises(ValueError, match=r"1\.jpg"):
            checkpoint.vectors(["1.jpg"])
        checkpoint.add("1.jpg", PRINT, embedded(51))
        checkpoint.flush()
        assert (len(checkpoint), list(checkpoint.errors())) == (2, [])


def test_commits_need_no_flush_after_enough_images(tmp_path):
    with Checkpoint(tmp_path / "c") as checkpoint:
        fill(checkpoint, COMMIT_IMAGES + 1)
        with Checkpoint(tmp_path / "c") as other:
            assert len(other) == COMMIT_IMAGES


def test_checkpoint_is_one_file_and_none_without_results(tmp_path):
    with Checkpoint(tmp_path / "c") as checkpoint:
        pass
    assert list(tmp_path.iterdir()) == []
    with Checkpoint(tmp_path / "c") as checkpoint:
        fill(checkpoint, 1)
        checkpoint.flush()
        assert [file.name for file in tmp_path.iterdir()] == ["c"]
        checkpoint.remove()
        assert len(checkpoint) == 0
    assert list(tmp_path.iterdir()) == []


def test_other_weights_during_a_run_are_refused(tmp_path):
    with Checkpoint(tmp_path / "c") as checkpoint:
        fill(checkpoint, 1)
        with pytest.raises(EmbeddingSpaceChanged, match="one@aaaaaaaaaaaa and two@aaaaaaaaaaaa"):
            checkpoint.add("x.jpg", PRINT, embedded(1, variant="two"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variant": "two"}, "variant is 'one' there, 'two' now"),
        ({"digest": "b" * 64}, "digest is 'aaaaaaaa"),
        ({"l2_normalized": True}, "l2_normalized is False there, True now"),
        ({"background": "white"}, "background is '' there, 'white' now"),
        ({"dimension": 512}, f"dimension is {DIMENSION} there, 512 now"),
    ],
)
def test_other_provenance_is_refused_by_the_differing_field(change, words, tmp_path):
    with Checkpoint(tmp_path / "c") as checkpoint:
        fill(checkpoint, 1)
        checkpoint.flush()
    with Checkpoint(tmp_path / "c") as checkpoint:
        mine = embedded(0).provenance
        checkpoint.check(mine)
        with pytest.raises(ValueError, match="--restart") as raised:
            checkpoint.check(Provenance(**vars(mine) | change))
    assert words in str(raised.value)


def test_digest_of_a_variant_that_is_loading_is_not_compared(tmp_path):
    with Checkpoint(tmp_path / "c") as checkpoint:
        fill(checkpoint, 1)
        checkpoint.check(Provenance("one", "", "one@", 0, False))
        with pytest.raises(ValueError, match="variant is"):
            checkpoint.check(Provenance("two", "", "two@", 0, False))


def run_script(file: Path, script: str) -> None:
    database = sqlite3.connect(file)
    database.executescript(script)
    database.close()


@pytest.mark.parametrize(
    "script",
    [
        "PRAGMA application_id = 1",
        "PRAGMA user_version = 99",
        "UPDATE provenance SET json = '{}'",
        "UPDATE provenance SET json = '[[['",
        """UPDATE provenance SET json = replace(json, '"dimension": 2048', '"dimension": "x"')""",
    ],
)
def test_file_of_another_format_says_how_to_start_over(script, tmp_path):
    file = tmp_path / "c"
    with Checkpoint(file) as checkpoint:
        fill(checkpoint, 1)
        checkpoint.flush()
    run_script(file, script)
    assert_refused(file)


def test_file_of_another_application_is_refused(tmp_path):
    run_script(tmp_path / "c", "CREATE TABLE t (x)")
    assert_refused(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"no database" * 1000)
    assert_refused(tmp_path / "c")


def assert_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="--restart") as raised:
        Checkpoint(file)
    assert str(file) in str(raised.value)
    Checkpoint.remove_from(file)
    with Checkpoint(file) as checkpoint:
        assert len(checkpoint) == 0


def test_damaged_vector_is_refused_by_its_image(tmp_path):
    file = tmp_path / "c"
    with Checkpoint(file) as checkpoint:
        fill(checkpoint, 2)
        checkpoint.flush()
    run_script(file, "UPDATE vectors SET vector = x'00000000' WHERE id = 2")
    with Checkpoint(file) as checkpoint, pytest.raises(ValueError, match=r"1\.jpg is damaged"):
        checkpoint.vectors(["0.jpg", "1.jpg"])


def test_full_disk_is_an_error_of_the_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoint(tmp_path / "c") as checkpoint:
        fill(checkpoint, 10)
        checkpoint.flush()
        fill(checkpoint, 100, first=10)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
        try:
            with pytest.raises(OSError, match=f"checkpoint {tmp_path / 'c'}: "):
                checkpoint.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert len(checkpoint) == 10
        checkpoint.flush()
        assert len(checkpoint) == 110


# Commits small batches for ever, and writes a line after each.
WRITER = """
import itertools, sys
from pathlib import Path
from resnet50_bulk.checkpoint import Checkpoint, FileFingerprint
from tests.support.embeddings import embedded

with Checkpoint(Path(sys.argv[1])) as checkpoint:
    for number in itertools.count(int(sys.argv[2])):
        checkpoint.add(f"{number}.jpg", FileFingerprint(1, 1), embedded(number))
        if number % 8 == 7:
            checkpoint.flush()
            print(number + 1, flush=True)
"""


def test_killed_writer_loses_no_commit_and_leaves_no_half_one(tmp_path):
    file, count = tmp_path / "c", 0
    for commits in (1, 3, 7):
        command = [sys.executable, "-c", WRITER, str(file), str(count)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with process:
            for _ in range(commits):
                committed = int(process.stdout.readline())
            process.kill()
        with Checkpoint(file) as checkpoint:
            count = len(checkpoint)
            assert count >= committed
            assert count % 8 == 0
            names = [f"{number}.jpg" for number in range(count)]
            first = checkpoint.vectors(names)[:, 0].tolist()
            assert first == [float(number) for number in range(count)]


def test_memory_does_not_grow_with_the_number_of_results(tmp_path):
    count = 40 * COMMIT_IMAGES
    tracemalloc.start()
    try:
        with Checkpoint(tmp_path / "c") as checkpoint:
            fill(checkpoint, count)
            checkpoint.flush()
            assert len(checkpoint) == count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count * 4 * DIMENSION > 4 * peak
