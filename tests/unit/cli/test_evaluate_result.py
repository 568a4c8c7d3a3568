"""Counts, tables and report of `evaluate`."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from resnet50_cli.evaluate.answer_file import AnswerFile
from resnet50_cli.evaluate.answers import Answered, WeightsChanged, classify_all
from resnet50_cli.evaluate.labelled_images import LabelledImage
from resnet50_cli.evaluate.report import page
from resnet50_cli.evaluate.result import MAX_LISTED, Evaluation, Tally
from resnet50_cli.evaluate.table import accuracies, categories, warnings
from resnet50_client.errors import InvalidImageError, ServerError
from resnet50_client.types import PublishedAccuracy
from tests.support.evaluations import classification, variant

NAMES = ("zero", "one", "two", "three", "four", "five", "six")
# Label, then the categories of the answer.
ANSWERS = [
    (0, (0, 1, 2, 3, 4)),
    (0, (1, 0, 2, 3, 4)),
    (1, (1, 0, 2, 3, 4)),
    (6, (1, 0, 2, 3, 4)),
]


def evaluated(answers=ANSWERS, other=None, **options) -> Evaluation:
    variants = [variant(NAMES, **options)]
    if other is not None:
        variants.append(variant(NAMES, name="other"))
    tally = Tally(variants)
    for number, (label, indices) in enumerate(answers):
        outcomes = [classification(*indices)]
        if other is not None:
            outcomes.append(classification(*other[number]))
        tally.add(Answered(LabelledImage(f"{number}.png", label), tuple(outcomes)))
    return tally.evaluation("val", len(answers), {}, complete=True)


def test_accuracies_are_shares_of_correct_answers():
    found = evaluated()
    assert (found.variant.acc_at_1.correct, found.variant.acc_at_1.percent) == (2, 50.0)
    assert (found.variant.acc_at_5.correct, found.variant.acc_at_5.percent) == (3, 75.0)
    assert [(one.label, one.acc_at_1.percent) for one in found.categories] == [
        ("zero", 50.0),
        ("one", 100.0),
        ("six", 0.0),
    ]
    assert [(one.label, one.answered, one.images) for one in found.confusions] == [
        ("zero", "one", 1),
        ("six", "one", 1),
    ]


def test_few_categories_have_no_accuracy_at_5():
    tally = Tally([variant(NAMES[:5])])
    tally.add(Answered(LabelledImage("a", 0), (classification(1, 0, 2, 3, 4),)))
    found = tally.evaluation("val", 1, {}, complete=True)
    assert (found.variant.acc_at_5, found.categories[0].acc_at_5) == (None, None)


def test_published_accuracy_stands_beside_the_measured_one():
    published = PublishedAccuracy("pets test set", 62.5, None)
    found = evaluated(published=published)
    difference = found.variant.published_at_1
    assert (difference.published, difference.percent) == (62.5, -12.5)
    assert difference.low == pytest.approx(found.variant.acc_at_1.low - 62.5)
    assert difference.high == pytest.approx(found.variant.acc_at_1.high - 62.5)
    assert found.variant.published_at_5 is None
    assert accuracies(found).rows[0][4:6] == ("62.50", "-12.50")
    assert "3 of 7 categories have images" in warnings(found)[0]


def test_variants_are_compared_image_by_image():
    found = evaluated(other=[(0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (1, 0, 2, 3, 4), (2, 6, 0, 1, 3)])
    compared = found.comparison
    assert compared.agreement == 0.5
    assert (compared.difference_at_1.only_first, compared.difference_at_1.only_second) == (0, 1)
    assert compared.difference_at_1.percent == 25.0
    assert (compared.difference_at_5.only_first, compared.difference_at_5.only_second) == (0, 1)
    assert [asdict(one) for one in compared.differing_images] == [
        {"path": "1.png", "label": "zero", "first": "one", "second": "zero"},
        {"path": "3.png", "label": "six", "first": "one", "second": "two"},
    ]
    assert compared.other.acc_at_1.percent == 75.0


def test_images_that_fail_count_for_no_variant():
    tally = Tally([variant(NAMES), variant(NAMES, name="other")])
    broken = InvalidImageError("is broken", code="INVALID_ARGUMENT")
    outcomes = (classification(0, 1, 2, 3, 4), broken)
    assert tally.add(Answered(LabelledImage("caf\udce9.png", 0), outcomes)) is broken
    found = tally.evaluation("val", 1, {}, complete=True)
    assert (found.answered, found.failed, found.comparison) == (0, 1, None)
    assert found.variant.acc_at_1 is None
    (failed,) = found.failed_images
    assert (failed.path, failed.code) == ("file:caf%E9.png", "INVALID_ARGUMENT")
    json.dumps(asdict(found), ensure_ascii=False).encode()


def test_lists_of_images_have_an_end():
    tally = Tally([variant(NAMES), variant(NAMES, name="other")])
    for number in range(MAX_LISTED + 5):
        image = LabelledImage(f"{number}.png", 0)
        tally.add(Answered(image, (classification(0, 1), classification(1, 0))))
        tally.add(Answered(image, (ServerError("failed"), classification(1, 0))))
    found = tally.evaluation("val", 2 * MAX_LISTED + 10, {}, complete=True)
    assert (found.failed, len(found.failed_images)) == (MAX_LISTED + 5, MAX_LISTED)
    assert found.comparison.differing == MAX_LISTED + 5
    assert len(found.comparison.differing_images) == MAX_LISTED


def test_worst_categories_come_first_with_their_confusion():
    rows = categories(evaluated()).rows
    assert [row[:2] for row in rows] == [("six", "one (1)"), ("zero", "one (1)"), ("one", "-")]


def test_report_is_one_page_without_scripts_or_links():
    other = [(1, 0, 2, 3, 4)] * 4
    text = page(evaluated(other=other, published=PublishedAccuracy("test set", 50.0, 75.0)))
    assert not re.search(r"<script|https?://|<link|<img|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    for part in ("50.00%", "Confusion matrix", "Images that differ", "0.png", "test set"):
        assert part in text


def test_key_figures_show_their_values_above_their_names():
    text = page(evaluated(published=PublishedAccuracy("test set", 52.5, 75.0)))
    tiles = re.findall(r'class="tile"><b>(.*?)</b><span>(.*?)</span>', text)
    assert tiles[0][0] == "50.00%"
    assert tiles[0][1].startswith("acc@1, 95%: ")
    assert tiles[2:] == [
        ("-2.50", "from the published 52.50%"),
        ("4", "images"),
        ("0", "failed images"),
    ]


def test_report_escapes_names():
    evil = "<b>\x1b[2J\u202ecat&"
    tally = Tally([variant((evil, *NAMES))])
    tally.add(Answered(LabelledImage("<i>.png", 0), (classification(1, 0),)))
    tally.add(Answered(LabelledImage("<i>.png", 0), (ServerError(evil),)))
    text = page(tally.evaluation("<u>", 2, {"<s>": 1}, complete=False))
    assert not any(tag in text for tag in ("<b>\\", "<i>", "<u>", "<s>", "\x1b", "\u202e"))
    assert r"&lt;b&gt;\x1b[2J\u202ecat&amp;" in text


def test_answer_file_has_a_row_per_image():
    file = io.StringIO()
    rows = AnswerFile(file, NAMES, 2)
    image = LabelledImage("caf\udce9.png", 1)
    rows.write(Answered(image, (classification(0, 1), classification(2, 3))))
    rows.write(Answered(LabelledImage("b.png", 0), (ServerError("x", code="INTERNAL"),) * 2))
    first, second = csv.DictReader(io.StringIO(file.getvalue()))
    assert first == {
        "path": "file:caf%E9.png",
        "label": "one",
        "top": "name 0",
        "probability": "0.5",
        "rank": "2",
        "error": "",
        "other_top": "name 2",
        "other_probability": "0.5",
        "other_rank": "",
        "other_error": "",
    }
    assert (second["error"], second["top"]) == ("INTERNAL", "")


def constant(*indices: int, digest: str = "ab" * 32):
    """Return a call that answers every image alike."""

    def call(images) -> Iterator:
        return ((path, classification(*indices, digest=digest)) for path, _ in images)

    return call


IMAGES = [LabelledImage(f"{number}.png", number % 3) for number in range(50)]


def test_two_variants_answer_the_same_images_in_order():
    found = list(classify_all([constant(0), constant(1)], IMAGES, threading.Event()))
    assert [one.image for one in found] == IMAGES
    assert {tuple(each.top.index for each in one.outcomes) for one in found} == {(0, 1)}


def test_stop_ends_a_run_after_images_in_flight():
    stop = threading.Event()
    seen = 0
    for _ in classify_all([constant(0), constant(1)], IMAGES, stop):
        seen += 1
        stop.set()
    assert seen == 1


def test_answers_of_other_weights_end_the_run():
    def changing(images) -> Iterator:
        for number, (path, _) in enumerate(images):
            yield path, classification(0, digest=f"{number // 2:064}")

    found = classify_all([changing], IMAGES, threading.Event())
    assert [next(found), next(found)]
    with pytest.raises(WeightsChanged, match="different weights"):
        next(found)


def test_answers_without_categories_are_errors():
    (found,) = classify_all([constant()], IMAGES[:1], threading.Event())
    assert isinstance(found.outcomes[0], ServerError)


def test_a_failing_variant_ends_the_other():
    def failing(images) -> Iterator:
        for path, _ in images:
            yield path, classification(0)
            raise ServerError("gone")

    with pytest.raises(ServerError, match="gone"):
        list(classify_all([constant(0), failing], IMAGES, threading.Event()))
