"""The comparison with other servers: its check of answers, its page, its load generator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from benchmarks.compare.__main__ import Ready, measure, plan
from benchmarks.compare.answers import WrongAnswer, check
from benchmarks.compare.load import Load
from benchmarks.compare.measure import Bench, generator, open_rate
from benchmarks.compare.peers import PEERS, Peer
from benchmarks.compare.plot import plot
from benchmarks.compare.report import losses, page
from benchmarks.compare.results import CONCURRENCIES, Result, Run, load, save
from benchmarks.compare.wires import WIRES, Answer
from resnet50.v1 import inference_pb2, result_pb2

RIGHT = [[0.4, 0.3, 0.1, 0.08, 0.05, 0.04, 0.03]]
NAMES = [f"clients_{n}.{f}" for n in CONCURRENCIES for f in ("per_s", "cpu_ms", "p50_ms", "p99_ms")]
ALIKE = {name: [10.0, 11.0] for name in [*NAMES, "memory_mib"]}
RESULTS = [
    Result("this (torch)", "resnet50", "s", "resnet50-serving 1", figures=ALIKE),
    Result(
        "mosec",
        "resnet50",
        "one worker",
        "mosec 2",
        figures=ALIKE | {"clients_16.per_s": [31.0, 29.0], "clients_16.cpu_ms": [7.5, 10.5]},
    ),
    Result("LitServe", "resnet50", "t", failure="not installed: no matching\ndistribution"),
]
RUN = Run("python -m benchmarks.compare", "A CPU", "torch 9", 2, 3.0)


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


def test_the_page_has_medians_and_ranges():
    text = page(RESULTS, RUN)
    assert "| mosec | 10.5 (10.0 to 11.0) | 10.5 (10.0 to 11.0) | 30.0 (29.0 to 31.0) |" in text


def test_a_failed_peer_is_a_row_that_says_why():
    assert "| LitServe | failed: not installed: no matching distribution |" in page(RESULTS, RUN)


def test_the_page_names_command_and_machine():
    text = page(RESULTS, RUN)
    assert "This run: `python -m benchmarks.compare`" in text
    assert "A CPU; torch 9" in text


def test_the_page_counts_the_turns_that_were_measured():
    assert "2 turns over all" in page(RESULTS, RUN)
    other = Result("BentoML", "resnet50", "u", figures={"memory_mib": [1.0, 2.0, 3.0]})
    assert "2 to 3 turns over all" in page([*RESULTS, other], RUN)


def test_the_page_warns_of_a_busy_machine():
    assert "busy" not in page(RESULTS, RUN)
    busy = Result("BentoML", "resnet50", "u", figures={"others_percent": [40.0]})
    assert "used 40% of the processor (median; at most 40%): **the machine" in page([busy], RUN)


def test_a_clear_loss_is_a_peer_better_in_every_turn():
    line = "* throughput with 16 clients, this (torch): 10.5 against mosec 30.0."
    assert losses(RESULTS, clearly=True) == [line]


def test_a_loss_may_be_within_the_spread_of_the_turns():
    line = "* CPU per image, this (torch): 10.5 against mosec 9.0."
    assert losses(RESULTS, clearly=False) == [line]


def test_results_survive_their_file(tmp_path):
    save(tmp_path / "data" / "comparison.json", RESULTS, RUN)
    assert load(tmp_path / "data" / "comparison.json") == (RESULTS, RUN)


def test_the_plot_names_each_measured_server():
    drawn = plot(RESULTS)
    assert "mosec" in drawn and "LitServe" not in drawn
    assert "prefers-color-scheme: dark" in drawn


def test_arrivals_suit_the_slowest_server():
    assert open_rate(RESULTS) == pytest.approx(0.7 * 10.5)


def test_each_wire_encodes_a_jpeg():
    jpeg = b"\xff\xd8jpeg"
    assert inference_pb2.ClassifyRequest.FromString(WIRES["resnet50"].encode(jpeg)).image.encoded
    assert WIRES["triton"].encode(jpeg).endswith(b"\x06\x00\x00\x00" + jpeg)
    assert json.loads(WIRES["base64"].encode(jpeg)) == {"image": "/9hqcGVn"}
    assert json.loads(WIRES["base64-list"].encode(jpeg)) == {"images": ["/9hqcGVn"]}
    assert BytesValue.FromString(WIRES["wrapped"].encode(jpeg)).value == jpeg
    assert WIRES["body"].encode(jpeg) == WIRES["grpc"].encode(jpeg) == jpeg


def test_each_wire_decodes_an_answer():
    categories = [result_pb2.Category(index=7, probability=0.5)]
    reply = inference_pb2.ClassifyResponse(
        classification=result_pb2.Classification(categories=categories)
    )
    ours = WIRES["resnet50"].decode(reply.SerializeToString())
    other = WIRES["body"].decode(b'{"indices": [7], "probabilities": [0.5]}')
    message = StringValue(value='{"indices": [7], "probabilities": [0.5]}')
    wrapped = WIRES["wrapped"].decode(message.SerializeToString())
    listed = WIRES["base64-list"].decode(b'[{"indices": [7], "probabilities": [0.5]}]')
    triton = WIRES["triton"].decode(
        b'{"outputs": [{"name": "indices", "data": [7]}, {"name": "probabilities", "data": [0.5]}]}'
    )
    assert ours == other == wrapped == listed == triton == Answer([7], [0.5])


def test_each_peer_has_a_wire_and_a_name_of_its_own():
    assert {peer.wire for peer in PEERS} <= set(WIRES)
    assert len({peer.key for peer in PEERS}) == len(PEERS)


@pytest.fixture
def bench(tmp_path):
    image = tmp_path / "0.jpg"
    image.write_bytes(b"\xff\xd8jpeg")
    with generator() as load_generator:
        yield Bench(
            load_generator, (str(image),), tmp_path / "weights.pth", RIGHT, 1.0, tmp_path / "log"
        )


def test_a_peer_that_does_not_start_fails_with_its_output(bench):
    result = Result("broken", "resnet50", "s")
    bench.turn(Peer("broken", "body", script="absent.py"), Path(sys.executable), result, 0.0)
    assert "the server does not listen: it ended with status 2" in result.failure
    assert "absent.py" in result.failure


def test_a_peer_that_failed_is_not_tried_again(bench):
    broken = Peer("broken", "body", script="absent.py")
    results = {(broken, "stub"): Result("broken", "stub", "s")}
    written = []
    measure(
        bench,
        results,
        {broken: Ready(Path(sys.executable), "broken 1")},
        turns=3,
        rates={},
        written=lambda: written.append(results[broken, "stub"].failure),
    )
    assert len(written) == 1 and "does not listen" in written[0]


def test_a_load_on_a_closed_port_names_the_reason(bench):
    with pytest.raises(RuntimeError, match="ClientConnectorError"):
        bench.generator.run(Load("127.0.0.1:1", "body", bench.images, 0.0))


def test_calls_to_a_closed_port_are_errors(bench):
    output = bench.generator.run(Load("127.0.0.1:1", "grpc", bench.images, 0.1, clients=2))
    assert output["latencies_ms"] == [] and output["errors"]["UNAVAILABLE"] >= 2


def test_measuring_one_peer_keeps_the_rows_of_others():
    litserve = next(peer for peer in PEERS if peer.name == "LitServe")
    results = plan({litserve: Ready(Path("python"), "litserve 3")}, RESULTS)
    assert list(results.values())[:2] == [RESULTS[0], results[litserve, "resnet50"]]
    assert RESULTS[1] in results.values()
    assert results[litserve, "resnet50"].failure == ""
    assert {name for (peer, name) in results if peer == litserve} == {"resnet50", "stub"}


def test_the_stub_is_measured_once_behind_this_server():
    ready = {peer: Ready(Path("python"), "1") for peer in PEERS}
    stubs = [one.name for (_, network), one in plan(ready, []).items() if network == "stub"]
    assert stubs[0] == "this" and len(stubs) == len(PEERS) - 1
