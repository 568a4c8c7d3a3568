"""`resnet50` as scripts use it: a real process against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

from tests.support.commands import resnet50
from tests.support.pictures import encode, photo_like


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.PNG", "below/c.jpg")):
        format = "JPEG" if name.endswith("jpg") else "PNG"
        (folder / name).write_bytes(encode(photo_like(32, 32, number), format))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_classify_prints_a_line_for_each_image_in_order(null_address, photos):
    done = resnet50("classify", photos / "below", photos / "a.png", server=null_address)
    lines = done.stdout.decode().splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(photos / "below" / "c.jpg"),
        str(photos / "a.png"),
    ]
    assert "tench" in lines[0]
    assert (done.returncode, done.stderr) == (0, b"")


def test_classify_json_is_one_object_a_line_errors_included(null_address, photos):
    done = resnet50(
        *("classify", photos / "a.png", photos / "notes.txt", photos / "none.png"),
        *("--json", "--top-k", 2, "--server", null_address),
    )
    good, broken, missing = map(json.loads, done.stdout.splitlines())
    assert [category["index"] for category in good["categories"]] == [0, 1]
    assert good["variant"]["name"] == "IMAGENET1K_V2"
    assert (good["timing"]["batch_size"], good["timing"]["cache"]) == (1, None)
    assert broken["error"]["code"] == "INVALID_ARGUMENT"
    assert missing["error"]["code"] == "UNREADABLE"
    assert done.returncode == 1
    assert b"notes.txt: image.encoded" in done.stderr


def test_classify_reads_stdin(null_address, photos):
    done = resnet50("classify", "-", server=null_address, input=(photos / "a.png").read_bytes())
    assert (done.returncode, done.stdout.startswith(b"-: tench")) == (0, True)


@pytest.mark.parametrize("command", ["classify", "embed", "stream"])
def test_background_is_an_option_of_every_command(command, null_address, photos, tmp_path):
    out = ("--out", tmp_path / "vectors.npz") if command == "embed" else ()
    good = resnet50(command, photos / "below", *out, "--background", "#FFfFff", server=null_address)
    assert good.returncode == 0, good.stderr
    wrong = resnet50(command, photos / "below", *out, "--background", "red", server=null_address)
    assert wrong.returncode == 2
    assert b"'--background': is 'red', must be" in wrong.stderr


def test_embed_writes_vectors_with_what_they_are(null_address, photos, tmp_path):
    out = tmp_path / "vectors.npz"
    done = resnet50("embed", photos, "--out", out, "--l2-normalize", server=null_address)
    assert done.returncode == 0, done.stderr
    found = np.load(out)
    assert found["paths"].tolist() == [
        str(photos / name) for name in ("a.png", "b.PNG", "below/c.jpg")
    ]
    assert (found["vectors"].shape, found["vectors"].dtype) == ((3, 2048), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found["vectors"], axis=1), 1.0, atol=1e-5)
    assert str(found["space"]) == f"{found['variant']}@{str(found['digest'])[:12]}"


def test_embed_leaves_out_what_failed_and_says_so(null_address, photos, tmp_path):
    out = tmp_path / "vectors.npz"
    done = resnet50(
        "embed", photos / "a.png", photos / "notes.txt", "--out", out, "--json", server=null_address
    )
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"embedded": 1, "failed": 1, "out": str(out)}
    assert b"notes.txt" in done.stderr
    assert np.load(out)["paths"].tolist() == [str(photos / "a.png")]


def test_folder_without_images_is_an_error(null_address, tmp_path):
    done = resnet50("classify", tmp_path, server=null_address)
    assert (done.returncode, b"no image files" in done.stderr) == (1, True)


def test_embed_refuses_an_output_that_cannot_be_before_it_starts(null_address, photos, tmp_path):
    for out in (tmp_path / "vectors.csv", tmp_path / "nowhere" / "vectors.npz"):
        done = resnet50("embed", photos, "--out", out, server=null_address)
        assert done.returncode == 2
        assert b"--out" in done.stderr


def test_variants_are_listed_and_shown(null_address):
    listed = resnet50("variants", server=null_address)
    assert b"IMAGENET1K_V2" in listed.stdout
    (one,) = map(
        json.loads,
        resnet50("variants", "show", "DEFAULT", "--json", server=null_address).stdout.splitlines(),
    )
    assert (one["name"], one["transform"]["resize"], len(one["categories"])) == (
        "IMAGENET1K_V2",
        232,
        1000,
    )


def test_health_is_for_scripts(null_address):
    done = resnet50("health", "--wait-s", 5, server=null_address)
    assert (done.returncode, done.stdout) == (0, b"SERVING\n")
    unknown = resnet50("health", "--service", "unknown", server=null_address)
    assert (unknown.returncode, unknown.stdout) == (3, b"SERVICE_UNKNOWN\n")


def test_version_is_the_distributions():
    done = subprocess.run(
        [sys.executable, "-m", "resnet50_cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == version("resnet50-serving")


def test_exit_codes_tell_what_went_wrong(null_address, photos):
    unreachable = resnet50("classify", photos / "a.png", "--server", "127.0.0.1:1")
    assert (unreachable.returncode, b"127.0.0.1:1" in unreachable.stderr) == (3, True)
    assert resnet50("health", "--server", "127.0.0.1:1").returncode == 3
    wrong = resnet50("classify", photos / "a.png", "--variant", "cats", server=null_address)
    assert (wrong.returncode, b"IMAGENET1K_V2" in wrong.stderr) == (1, True)
    assert resnet50("classify", "--no-such-option").returncode == 2
    address = resnet50("health", "--server", "")
    assert (address.returncode, b"server" in address.stderr) == (2, True)
    for done in (unreachable, wrong, address):
        assert b"Traceback" not in done.stderr


def test_help_names_exit_codes_and_environment():
    done = resnet50("classify", "--help")
    assert b"RESNET50_SERVER" in done.stdout
    assert b"Exit codes" in done.stdout
