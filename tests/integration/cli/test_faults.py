"""`resnet50` against servers that lose, swap or swallow frames: no image without an answer or an
error, and an exit status that says so."""

from __future__ import annotations

import os
import re

import pytest
from typer.testing import CliRunner, Result

from resnet50_cli.app import app
from resnet50_cli.images import Answer, answers
from resnet50_client import UnavailableError
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


COMMANDS = pytest.mark.parametrize("command", ["classify", "embed", "stream"])


@COMMANDS
def test_stream_that_ends_early_resumes_and_loses_no_image(command, photos):
    done = run(command, photos, Puppet("cat", frames="ended"))
    assert done.exit_code == 0, done.output
    if command == "classify":
        lines = [line.partition(":")[0] for line in done.stdout.splitlines()]
        assert lines == [f"{photos}/{number}.png" for number in range(PHOTOS)]
    else:
        assert f"{PHOTOS} images embedded" in done.output or f"{PHOTOS} answered" in done.output


@COMMANDS
@pytest.mark.parametrize("frames", ["closed", "ignored"])
def test_unanswered_images_are_counted_and_exit_as_unavailable(command, frames, photos):
    done = run(command, photos, Puppet("cat", frames=frames), timeout_s=0.5)
    assert done.exit_code == 3, done.output
    assert re.search(r"\d frames? had no answer", done.stderr)
    assert "cat" not in done.stdout.replace(str(photos), "")


def test_evaluation_counts_every_image_of_a_resumed_stream(photos):
    done = evaluate(photos, Puppet("cat", frames="ended"))
    assert done.exit_code == 0, done.output
    assert f"{PHOTOS} images of 1 category" in done.stdout


def test_evaluation_without_answers_is_incomplete(photos):
    done = evaluate(photos, Puppet("cat", frames="closed"), timeout_s=0.5)
    assert done.exit_code == 3, done.output
    assert f"incomplete: 0 of {PHOTOS} images were evaluated" in done.stdout


@COMMANDS
def test_answers_in_another_order_label_no_file_wrongly(command, photos):
    done = run(command, photos, Puppet("cat", frames="swapped"))
    assert done.exit_code == 1, done.output
    assert "the server answered frame 1 of an ordered stream before frame 0" in done.stderr
    assert "cat" not in done.stdout.replace(str(photos), "")


def test_an_image_that_breaks_connections_fails_alone():
    broke = UnavailableError("frame 0: was sent 3 times", code="UNAVAILABLE")
    found = answers(lambda images: (one for one in (broke, *list(images)[1:])), ["a", "b"])
    assert list(found) == [Answer("a", broke), Answer("b", "b")]


def test_what_a_server_says_of_itself_ends_the_command():
    draining = UnavailableError("variant a is unloaded", code="UNAVAILABLE", request_id="1")
    with pytest.raises(UnavailableError, match="is unloaded"):
        list(answers(lambda images: (draining for _ in images), ["a", "b"]))
