"""The comparison with other servers: its check of answers, its page, its load generator."""

from __future__ import annotations

import json

import pytest

from benchmarks.compare.answers import WrongAnswer, check
from benchmarks.compare.measure import Figures, Result, from_json, open_rate, to_json
from benchmarks.compare.peers import PEERS
from benchmarks.compare.report import Run, losses, page, plot
from benchmarks.compare.wires import WIRES, Answer
from resnet50.v1 import inference_pb2, result_pb2

RIGHT = [[0.4, 0.3, 0.1, 0.08, 0.05, 0.04, 0.03]]


def figures(per_s: float, **other: float) -> Figures:
    values = dict.fromkeys(
        ("one_p50_ms", "one_p99_ms", "p50_ms", "p99_ms", "cpu_ms", "memory_mib"), 10.0
    )
    values |= {"per_s": per_s, **other}
    return Figures(**{name: [value] for name, value in values.items()})


RESULTS = [
    Result("this (torch)", "resnet50", "s", "resnet50-serving 1", 0.0, "", figures(20.0)),
    Result("mosec", "resnet50", "one worker", "mosec 2", 0.0, "", figures(30.0, cpu_ms=7.5)),
    Result("LitServe", "resnet50", "t", failure="not installed: no matching\ndistribution"),
]
RUN = Run("python -m benchmarks.compare", "A CPU", "torch 9", "2026-01-02", 2, 1, 3.0, {}, 4.0)


def test_the_check_accepts_answers_within_the_tolerance():
    answer = Answer([0, 1, 2, 3, 4], [0.4004, 0.3, 0.0996, 0.08, 0.05])
    assert check([answer], RIGHT) == pytest.approx(0.0004)


def test_the_check_lets_near_ties_change_places():
    near = [[0.5, 0.2, 0.1, 0.0805, 0.08, 0.03]]
    assert check([Answer([0, 1, 2, 4, 3], [0.5, 0.2, 0.1, 0.08, 0.0805])], near) < 1e-3


@pytest.mark.parametrize(
    "answer",
    [
        Answer([0, 1, 2, 3, 4], [0.402, 0.3, 0.1, 0.08, 0.05]),
        Answer([0, 1, 2, 3, 5], [0.4, 0.3, 0.1, 0.08, 0.04]),
        Answer([1, 0, 2, 3, 4], [0.4, 0.3, 0.1, 0.08, 0.05]),
        Answer([0, 1, 2, 3], [0.4, 0.3, 0.1, 0.08]),
        Answer([0, 0, 2, 3, 4], [0.4, 0.4, 0.1, 0.08, 0.05]),
        Answer([0, 1, 2, 3, 4], [float("nan"), 0.3, 0.1, 0.08, 0.05]),
    ],
    ids=["probability", "category", "swapped", "four", "repeated", "nan"],
)
def test_the_check_refuses_a_peer_that_answers_otherwise(answer):
    with pytest.raises(WrongAnswer):
        check([answer], RIGHT)


def test_the_check_refuses_missing_answers():
    with pytest.raises(WrongAnswer, match="0 answers to 1 images"):
        check([], RIGHT)


def test_the_page_has_a_row_per_measured_server():
    text = page(RESULTS, RUN)
    assert "| this (torch) | 10.0 | 10.0 | 20.0 |" in text
    assert "| mosec | 10.0 | 10.0 | 30.0 |" in text


def test_the_page_says_why_a_peer_is_missing():
    assert "* LitServe, resnet50: not installed: no matching distribution" in page(RESULTS, RUN)


def test_the_page_names_command_machine_and_load():
    text = page(RESULTS, RUN)
    assert "`python -m benchmarks.compare`, 2026-01-02" in text
    assert "A CPU; torch 9" in text
    assert "load average before the run was 4.0: **other processes" in text


def test_the_page_says_where_a_peer_is_better():
    assert losses(RESULTS) == [
        "* throughput, this (torch): 20.0 against mosec 30.0.",
        "* CPU per image, this (torch): 10.0 against mosec 7.5.",
    ]


def test_results_survive_json():
    assert from_json(json.loads(json.dumps(to_json(RESULTS)))) == RESULTS


def test_the_plot_names_each_measured_server():
    drawn = plot(RESULTS)
    assert "mosec" in drawn and "LitServe" not in drawn
    assert "prefers-color-scheme: dark" in drawn


def test_arrivals_suit_the_slowest_server():
    assert open_rate(RESULTS) == pytest.approx(12.0)


def test_each_wire_encodes_a_jpeg():
    jpeg = b"\xff\xd8jpeg"
    assert inference_pb2.ClassifyRequest.FromString(WIRES["resnet50"].encode(jpeg)).image.encoded
    assert WIRES["triton"].encode(jpeg).endswith(b"\x06\x00\x00\x00" + jpeg)
    assert json.loads(WIRES["base64"].encode(jpeg)) == {"image": "/9hqcGVn"}
    assert WIRES["body"].encode(jpeg) == WIRES["grpc"].encode(jpeg) == jpeg


def test_each_wire_decodes_an_answer():
    categories = [result_pb2.Category(index=7, probability=0.5)]
    reply = inference_pb2.ClassifyResponse(
        classification=result_pb2.Classification(categories=categories)
    )
    ours = WIRES["resnet50"].decode(reply.SerializeToString())
    other = WIRES["body"].decode(b'{"indices": [7], "probabilities": [0.5]}')
    triton = WIRES["triton"].decode(
        b'{"outputs": [{"name": "indices", "data": [7]}, {"name": "probabilities", "data": [0.5]}]}'
    )
    assert ours == other == triton == Answer([7], [0.5])


def test_each_peer_has_a_wire_and_a_name_of_its_own():
    assert {peer.wire for peer in PEERS} <= set(WIRES)
    assert len({peer.key for peer in PEERS}) == len(PEERS)
