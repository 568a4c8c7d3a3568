"""`resnet50 evaluate` against real servers."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resnet50_client import Client
from tests.support.administering import describe
from tests.support.commands import environment, resnet50
from tests.support.evaluations import PNG, image_folder
from tests.support.serving import server_processes


@pytest.fixture(scope="module")
def held_out(digits, tmp_path_factory) -> Path:
    """The held-out digits in a folder for each category."""
    folder = tmp_path_factory.mktemp("held out")
    data = digits.digits()
    for name in digits.CATEGORIES:
        (folder / name).mkdir()
    for number, (image, label) in enumerate(zip(data.held_out, data.held_out_labels, strict=True)):
        image.save(folder / digits.CATEGORIES[label] / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def served(built, tmp_path_factory) -> Iterator[str]:
    """A server with the digits, and the same weights with zero and one exchanged in the head."""
    directory, _ = built
    exchanged = tmp_path_factory.mktemp("variants") / "exchanged"
    shutil.copytree(directory, exchanged)
    weights = load_file(exchanged / "weights.safetensors")
    order = [1, 0, *range(2, 10)]
    for name in ("fc.weight", "fc.bias"):
        weights[name] = np.ascontiguousarray(weights[name][order])
    save_file(weights, exchanged / "weights.safetensors")
    with server_processes() as start:
        server = start(
            *("--variants", f"digits={directory}", "--variants", f"exchanged={exchanged}")
        )
        yield server.wait_until_listening()


@pytest.fixture(scope="module")
def null_server(tmp_path_factory) -> Iterator[str]:
    """A server whose answer is always category 0, then 1, 2, 3, 4."""
    folder = tmp_path_factory.mktemp("variants")
    describe(folder / "few")
    describe(folder / "tags", activation="sigmoid")
    describe(folder / "vectors", ())
    with server_processes() as start:
        names = ("IMAGENET1K_V2", *(f"{one}={folder / one}" for one in ("few", "tags", "vectors")))
        variants = [argument for name in names for argument in ("--variants", name)]
        yield start(*variants, "--engine", "null").wait_until_listening()


def evaluated(*arguments: object, server: str) -> dict:
    done = resnet50("evaluate", *arguments, "--json", server=server)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_held_out_digits_give_the_figure_of_the_digits_test(digits, built, held_out, served):
    found = evaluated(held_out, server=served)
    data = digits.digits()
    with Client(served) as client:
        answers = client.classify_many(data.held_out, variant="digits", top_k=1)
        correct = sum(
            answer.top.index == label
            for answer, label in zip(answers, data.held_out_labels, strict=True)
        )
    variant = found["variant"]
    assert (found["answered"], found["failed"], variant["acc_at_1"]["images"]) == (400, 0, 400)
    assert variant["acc_at_1"]["correct"] == correct
    assert correct / 400 == pytest.approx(built[1], abs=0.005)
    published = variant["published_at_1"]
    assert published["published"] == pytest.approx(100 * built[1], abs=0.01)
    assert published["low"] < 0 < published["high"]
    assert sum(one["acc_at_1"]["correct"] for one in found["categories"]) == correct
    assert sum(one["images"] for one in found["confusions"]) == 400 - correct
    assert found["complete"]


def test_result_is_shown_and_written(held_out, served, tmp_path):
    report, rows = tmp_path / "report.html", tmp_path / "rows.csv"
    done = resnet50("evaluate", held_out, "--html", report, "--csv", rows, server=served)
    assert (done.returncode, done.stderr) == (0, b"")
    for part in (b"400 images of 10 categories", b"acc@1", b"95% interval", b"held out)"):
        assert part in done.stdout
    assert "Confusion matrix" in report.read_text()
    with rows.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 400
    assert sum(row["rank"] == "1" for row in found) / 400 > 0.94


def test_compared_variants_differ_where_their_heads_do(digits, held_out, served):
    found = evaluated(held_out, "--compare", "exchanged", server=served)
    compared = found["comparison"]
    zeros_and_ones = sum(
        one["acc_at_1"]["images"] for one in found["categories"] if one["label"] in ("zero", "one")
    )
    assert compared["differing"] == pytest.approx(zeros_and_ones, abs=8)
    assert compared["agreement"] == pytest.approx(1 - compared["differing"] / 400)
    difference = compared["difference_at_1"]
    assert difference["low"] < difference["percent"] < difference["high"] < 0
    assert difference["p_value"] < 1e-6
    pairs = {(one["first"], one["second"]) for one in compared["differing_images"]}
    assert pairs == {("zero", "one"), ("one", "zero")}
    assert all(os.path.exists(one["path"]) for one in compared["differing_images"])


def test_variants_of_two_servers_are_compared(null_server, tmp_path):
    folder = image_folder(tmp_path / "val", tench=2)
    with server_processes() as start:
        other = start("--variants", "IMAGENET1K_V2", "--engine", "null").wait_until_listening()
        found = evaluated(folder, "--compare-server", other, server=null_server)
    assert found["comparison"]["agreement"] == 1.0
    assert found["comparison"]["difference_at_1"]["p_value"] == 1.0


def test_labels_come_from_folders_or_files(null_server, tmp_path):
    folder = image_folder(tmp_path / "val", **{"tench": 3, "great_white_shark": 1, "900": 1})
    found = evaluated(folder, server=null_server)
    figures = found["variant"]["acc_at_1"]["correct"], found["variant"]["acc_at_5"]["correct"]
    assert figures == (3, 4)
    (tmp_path / "labels.csv").write_text("path,label\ntench/0.png,3\n900/0.png,tench\n")
    found = evaluated(folder, "--labels", tmp_path / "labels.csv", server=null_server)
    figures = found["variant"]["acc_at_1"]["correct"], found["variant"]["acc_at_5"]["correct"]
    assert figures == (1, 2)
    (tmp_path / "list").write_text(f"{folder}/tench/1.png\n{folder}/900\n")
    found = evaluated(folder, "--files-from", tmp_path / "list", server=null_server)
    assert (found["images"], found["variant"]["acc_at_1"]["correct"]) == (2, 1)
    ids = image_folder(tmp_path / "ids", n01440764=1, n01491361=1)
    (tmp_path / "ids.json").write_text('{"0": ["n01440764", "tench"], "3": ["n01491361", "x"]}')
    found = evaluated(ids, "--labels", tmp_path / "ids.json", server=null_server)
    assert [one["index"] for one in found["categories"]] == [0, 3]


def test_bad_images_are_errors_and_count_in_no_accuracy(null_server, tmp_path):
    folder = image_folder(tmp_path / "val", tench=2)
    (folder / "tench" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "labels.csv").write_text("tench/0.png,tench\ntench/broken.jpg,0\ngone.png,0\n")
    done = resnet50(
        *("evaluate", folder, "--labels", tmp_path / "labels.csv", "--json"), server=null_server
    )
    found = json.loads(done.stdout)
    assert (done.returncode, found["answered"], found["failed"]) == (1, 1, 2)
    assert [one["code"] for one in found["failed_images"]] == ["INVALID_ARGUMENT", "UNREADABLE"]
    assert found["variant"]["acc_at_1"]["percent"] == 100.0
    assert b"broken.jpg: image.encoded" in done.stderr
    assert b"gone.png: No such file" in done.stderr


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        ({"tench": 1, "CARDIGAN": 1}, "'CARDIGAN' may be category 264 or 474"),
        ({"tench": 1, "cats": 1}, "'cats' is no category of IMAGENET1K_V2"),
        ({"tench": 1, "goldfish": 0}, "goldfish: has no images"),
        ({}, "has no folders of categories"),
    ],
)
def test_uncertain_labels_are_refused_before_images_are_sent(
    folders, problem, null_server, tmp_path
):
    folder = image_folder(tmp_path / "val", **folders)
    folder.mkdir(exist_ok=True)
    rows = tmp_path / "rows.csv"
    done = resnet50("evaluate", folder, "--csv", rows, server=null_server)
    assert (done.returncode, done.stdout) == (2, b"")
    assert str(folder) in done.stderr.decode()
    assert problem in done.stderr.decode()
    assert not rows.exists()


def test_options_that_cannot_be_are_refused(null_server, tmp_path):
    folder = image_folder(tmp_path / "val", tench=1)
    for arguments, status, problem in (
        ((tmp_path / "none",), 1, b"is no folder"),
        ((folder, "--html", tmp_path / "x.txt"), 2, b"--html"),
        ((folder, "--labels", tmp_path / "x.xml"), 2, b"ends in none of .csv, .json and .txt"),
        ((folder, "--compare", "DEFAULT"), 2, b"compared with itself"),
        ((folder, "--compare", "few"), 2, b"few has other categories than IMAGENET1K_V2"),
        ((folder, "-0"), 2, b"--null"),
        ((folder, "--variant", "vectors"), 2, b"vectors has no categories: it has embeddings only"),
        ((folder, "--variant", "tags"), 2, b"tags is a multi-label variant (activation sigmoid)"),
        ((folder, "--compare", "tags"), 2, b"tags is a multi-label variant"),
    ):
        done = resnet50("evaluate", *arguments, server=null_server)
        assert (done.returncode, problem in done.stderr) == (status, True), done.stderr
        assert b"Traceback" not in done.stderr


def test_interrupted_evaluation_reports_answers_so_far(tmp_path):
    folder = image_folder(tmp_path / "val", tench=1)
    (folder / "tench" / "00.png").write_bytes(b"no image")
    for number in range(1, 400):
        (folder / "tench" / f"{number}.png").write_bytes(PNG)
    with server_processes() as start:
        slow = ("--engine", "timed", "--timed-alpha-ms", "50", "--timed-beta-ms", "0")
        server = start("--variants", "IMAGENET1K_V2", *slow).wait_until_listening()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "resnet50_cli", "evaluate", folder),
                *("--json", "--concurrency", "1"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(server),
        )
        assert b"00.png" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    found = json.loads(output)
    assert (process.returncode, found["complete"]) == (130, False)
    assert found["failed"] == 1
    assert found["answered"] < 400 == found["images"] - 1
