"""`resnet50` against servers that lose, swap or swallow frames: no image without an answer or an
error, and an exit code that says so."""

from __future__ import annotations

import os
import re

import pytest
from typer.testing import CliRunner, Result

from resnet50_cli.app import app
from resnet50_cli.images import Answer, answers
from resnet50_client import DeadlineExceededError, UnavailableError
from tests.support.pictures import encode, photo_like
from tests.support.puppet_server import Puppet, puppet_server

PHOTOS = 4


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(PHOTOS):
        (folder / f"{number}.png").write_bytes(encode(photo_like(16, 16, number)))
    return folder


def run(name: str, photos, puppet: Puppet, *, timeout_s: float = 60.0) -> Result:
    """Run a command. A short timeout is for servers that never answer: others may be slow."""
    command = {
        "classify": ["classify", str(photos)],
        "embed": ["embed", str(photos), "--out", str(photos.parent / "vectors.npz")],
        "evaluate": ["evaluate", str(photos), "--labels", str(photos.parent / "labels.csv")],
        "stream": ["stream", str(photos), "--fps", "1000"],
    }[name]
    environment = {one: None for one in os.environ if one.startswith("RESNET50_")}
    with puppet_server(puppet) as address:
        done = CliRunner().invoke(
            app, [*command, "--timeout-s", str(timeout_s), "--server", address], env=environment
        )
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def evaluate(photos, puppet: Puppet, *, timeout_s: float = 60.0) -> Result:
    labels = photos.parent / "labels.csv"
    labels.write_text("".join(f"{number}.png,0\n" for number in range(PHOTOS)))
    return run("evaluate", photos, puppet, timeout_s=timeout_s)


def test_stream_that_ends_early_resumes_and_loses_no_frame(photos):
    done = run("stream", photos, Puppet("cat", frames="ended"))
    assert done.exit_code == 0, done.output
    assert f"{PHOTOS} answered" in done.output


@pytest.mark.parametrize("frames", ["closed", "ignored"])
def test_unanswered_frames_are_counted_and_exit_as_unavailable(frames, photos):
    done = run("stream", photos, Puppet("cat", frames=frames), timeout_s=0.5)
    assert done.exit_code == 3, done.output
    assert re.search(r"\d frames? had no answer", done.stderr)
    assert "cat" not in done.stdout.replace(str(photos), "")


@pytest.mark.parametrize("command", ["classify", "embed"])
def test_images_without_an_answer_are_counted_and_exit_as_unavailable(command, photos):
    done = run(command, photos, Puppet("cat", images="ignored"), timeout_s=0.5)
    assert done.exit_code == 3, done.output
    for number in range(PHOTOS):
        assert re.search(rf"/{number}\.png: .*(no response within|Deadline Exceeded)", done.stderr)
    assert not (photos.parent / "vectors.npz").exists()
    assert re.search(
        rf"\b{PHOTOS} (images )?were not answered in time \(--timeout-s\)", done.stderr
    )
    assert "cat" not in done.stdout.replace(str(photos), "")


@pytest.mark.parametrize("command", ["classify", "embed"])
def test_images_that_break_each_connection_fail(command, photos):
    done = run(command, photos, Puppet("cat", images="closed"))
    assert done.exit_code == 1, done.output
    assert done.stderr.count("it may crash servers") == PHOTOS
    assert "cat" not in done.stdout.replace(str(photos), "")


def test_evaluation_without_answers_is_no_success(photos):
    done = evaluate(photos, Puppet("cat", images="ignored"), timeout_s=0.5)
    assert done.exit_code == 3, done.output
    assert f"{PHOTOS} images were not answered in time" in done.stderr
    assert f"{PHOTOS} images failed" in done.stdout


def test_a_server_that_stays_mute_ends_the_run(monkeypatch):
    late = DeadlineExceededError("too late", code="DEADLINE_EXCEEDED")
    monkeypatch.setattr("resnet50_cli.images.MAX_UNANSWERED", 3)

    def call(images):
        for number, (path, _) in enumerate(images):
            yield path, (path if number == 2 else late)

    found = answers(call, map(str, range(100)))
    assert [next(found).path for _ in range(6)] == ["0", "1", "2", "3", "4", "5"]
    with pytest.raises(DeadlineExceededError):
        next(found)


def test_answers_in_another_order_label_no_frame_wrongly(photos):
    done = run("stream", photos, Puppet("cat", frames="swapped"))
    assert done.exit_code == 1, done.output
    assert "the server answered frame 1 of an ordered stream before frame 0" in done.stderr
    assert "cat" not in done.stdout.replace(str(photos), "")


def test_an_image_that_breaks_connections_fails_alone():
    broke = UnavailableError("image 0: the connection broke each of 4 times", code="UNAVAILABLE")
    outcomes = {"a": broke, "b": "tench"}
    found = answers(lambda images: ((key, outcomes[key]) for key, _ in images), ["a", "b"])
    assert list(found) == [Answer("a", broke), Answer("b", "tench")]


def test_errors_of_the_whole_call_end_the_command():
    draining = UnavailableError("variant a is unloaded", code="UNAVAILABLE", request_id="1")

    def call(images):
        yield next(iter(images))
        raise draining

    found = answers(call, ["a", "b"])
    assert next(found) == Answer("a", "a")
    with pytest.raises(UnavailableError, match="is unloaded"):
        next(found)
