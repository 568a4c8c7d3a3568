"""The short form of `make fuzz-live`: mutated images and messages through a server process."""

from __future__ import annotations

import grpc
import pytest

from fuzz import live
from fuzz.live import Plan, Report, Sent, Source

CALLS = 150
WRONG_CALL, WRONG_ANSWER = "image:3: /no.such/Method: UNIMPLEMENTED", "(number 5)"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Where what is found is written."""
    return tmp_path_factory.mktemp("found")


@pytest.fixture(scope="module")
def report(found) -> Report:
    """Return the report of a run in which one call and one good image get wrong answers."""
    make = Source.make

    def make_wrong(source: Source, name: str) -> Sent:
        sent = make(source, name)
        return Sent(name, "/no.such/Method", sent.messages) if name == "image:3" else sent

    def expect_wrong(senders: live.Senders, which: int):
        return senders.answers[which] * (-1 if which == 5 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "make", make_wrong)
        patch.setattr(live.Senders, "expected", expect_wrong)
        patch.setattr(live, "FOUND", found)
        return live.run(
            Plan(seed=2, images=CALLS, messages=CALLS, oip=CALLS, warm_up=0, flat=False)
        )


def test_mutated_input_is_answered_or_refused_without_leaks(report):
    made_wrong = (WRONG_CALL, WRONG_ANSWER)
    assert [one for one in report.findings if not any(text in one for text in made_wrong)] == []
    for codes in report.codes.values():  # neither is everything refused, nor nothing
        assert sum(codes.values()) == CALLS
        assert codes["OK"] >= 10
        assert codes["INVALID_ARGUMENT"] >= 10
    assert report.good > live.SENDERS


def test_unexpected_status_code_is_found_and_written_down(report, found):
    (one,) = [finding for finding in report.findings if WRONG_CALL in finding]
    assert "--repeat" in one
    (path,) = found.iterdir()
    assert Sent.read(path).path == "/no.such/Method"
    assert Sent.read(path).messages == Source(2).make("image:3").messages


def test_changed_answer_to_a_good_image_is_found(report):
    assert any(WRONG_ANSWER in finding for finding in report.findings)


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "UNAVAILABLE"])
def test_faults_and_hangs_are_no_answers_to_bad_input(code):
    assert grpc.StatusCode[code] not in live.ALLOWED


def test_same_seed_makes_the_same_calls():
    names = [f"{kind}:{number}" for kind in ("image", "message") for number in range(50)]
    one, again, other = (Source(seed) for seed in (1, 1, 2))
    sent = [one.make(name) for name in names]
    assert sent == [again.make(name) for name in reversed(names)][::-1]
    assert sent != [other.make(name) for name in names]


def test_memory_that_grows_is_found():
    report = Report(memory_kib=[(done, 1000 + done) for done in range(1000)])
    first, last = report.tenths_mib()
    assert last / first - 1 > live.MAX_DRIFT
