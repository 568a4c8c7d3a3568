from __future__ import annotations

import contextlib

import pytest

from resnet50_server.admission import REMEMBERED_CALLERS, Admission, Limits
from resnet50_server.errors import Overloaded, ShuttingDown


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def inside(admission: Admission) -> tuple[int, int]:
    return admission.requests, admission.bytes


@contextlib.contextmanager
def refused_by(limit: str):
    with pytest.raises(Overloaded, match=limit) as refused:
        yield refused
    assert refused.value.limit == limit
    assert refused.value.retry_after_s > 0


def test_request_beyond_max_requests_is_refused_and_names_the_limit():
    admission = Admission(Limits(requests=2))
    with admission.admit("a", 1), admission.admit("b", 1):
        with refused_by("max_requests") as refused, admission.admit("c"):
            pass
        assert "max_requests (2)" in str(refused.value)
        assert inside(admission) == (2, 2)
    with admission.admit("c", 1):
        assert inside(admission) == (1, 1)


def test_request_beyond_max_bytes_is_refused_and_names_the_limit():
    admission = Admission(Limits(bytes=100))
    with admission.admit("a", 60):
        with refused_by("max_request_bytes") as refused, admission.admit("b", 41):
            pass
        assert "max_request_bytes (100)" in str(refused.value)
        with admission.admit("b", 40):
            assert inside(admission) == (2, 100)


def test_bytes_that_arrive_later_are_counted_too_and_come_back():
    admission = Admission(Limits(bytes=100))
    with admission.admit("a") as first, admission.admit("b") as second:
        first.grow(60)
        with refused_by("max_request_bytes"):
            second.grow(41)
        second.grow(40)
        assert inside(admission) == (2, 100)
    assert inside(admission) == (0, 0)


def test_lone_request_is_admitted_however_large():
    # Otherwise a limit below the largest message would refuse that message for ever.
    admission = Admission(Limits(bytes=100, bytes_per_caller=50))
    with admission.admit("a", 1000), pytest.raises(Overloaded), admission.admit("b", 1):
        pass
    with admission.admit("a", 1):
        pass


def test_one_caller_may_have_its_part_only_and_others_still_come_in():
    admission = Admission(Limits(requests=4, requests_per_caller=2))
    with admission.admit("a"), admission.admit("a"):
        with refused_by("max_requests_per_caller") as refused, admission.admit("a"):
            pass
        assert "requests of a" in str(refused.value)
        with admission.admit("b"), admission.admit("b"):
            pass
    with admission.admit("a"):
        pass


def test_one_callers_bytes_are_bounded_too():
    admission = Admission(Limits(bytes=100, bytes_per_caller=50))
    with admission.admit("a", 40):
        with refused_by("max_request_bytes_per_caller"), admission.admit("a", 11):
            pass
        with admission.admit("b", 50):
            assert inside(admission) == (2, 90)


def test_streams_are_bounded_in_all_and_of_each_caller():
    admission = Admission(Limits(streams=3, streams_per_caller=2))
    with admission.stream("a"), admission.stream("a"):
        with refused_by("max_streams_per_caller"), admission.stream("a"):
            pass
        with admission.stream("b"), refused_by("max_streams"), admission.stream("c"):
            pass
        assert admission.streams == 2
    assert admission.streams == 0


def test_caller_above_its_rate_is_told_when_to_come_back():
    clock = Clock()
    admission = Admission(Limits(rate_per_caller=4.0), clock)
    for _ in range(4):  # as many at once as in a second
        with admission.admit("a"):
            pass
    with refused_by("max_rate_per_caller") as refused, admission.admit("a"):
        pass
    assert refused.value.retry_after_s == pytest.approx(0.25)
    with admission.admit("b"):  # another one's rate is its own
        pass
    clock.now += 0.25
    with admission.admit("a"):
        pass
    with refused_by("max_rate_per_caller"), admission.admit("a"):
        pass
    assert inside(admission) == (0, 0)


def test_rate_below_one_a_second_lets_one_in_at_a_time():
    clock = Clock()
    admission = Admission(Limits(rate_per_caller=0.1), clock)
    with admission.admit("a"):
        pass
    with refused_by("max_rate_per_caller") as refused, admission.admit("a"):
        pass
    assert refused.value.retry_after_s == pytest.approx(10.0)
    clock.now += 10.0
    with admission.admit("a"):
        pass


def test_request_that_another_limit_refuses_does_not_count_for_the_rate():
    admission = Admission(Limits(requests=1, rate_per_caller=1.0), Clock())
    with admission.admit("b"):
        for _ in range(3):
            with refused_by("max_requests"), admission.admit("a"):
                pass
    with admission.admit("a"):
        pass


def test_bulk_leaves_room_for_interactive_requests():
    admission = Admission(Limits(requests=4, bytes=100))
    with contextlib.ExitStack() as places:
        for _ in range(3):
            places.enter_context(admission.admit("a", 20, bulk=True))
        with refused_by("max_requests"), admission.admit("a", bulk=True):
            pass
        with admission.admit("b", 20):
            pass
    with admission.admit("a", 60, bulk=True):
        with refused_by("max_request_bytes"), admission.admit("a", 16, bulk=True):
            pass
        with admission.admit("b", 40):
            pass


def test_bulk_comes_in_even_where_there_is_one_place():
    admission = Admission(Limits(requests=1))
    with admission.admit("a", bulk=True):
        assert inside(admission) == (1, 0)


def test_callers_that_left_are_forgotten():
    clock = Clock()
    admission = Admission(Limits(rate_per_caller=1.0), clock)
    for number in range(3 * REMEMBERED_CALLERS):
        with admission.admit(f"address:{number}"), admission.stream(f"address:{number}"):
            pass
        clock.now += 0.01
    assert len(admission._callers) <= REMEMBERED_CALLERS + 1
    clock.now += 10.0
    without_rate = Admission(Limits())
    with without_rate.admit("a"):
        pass
    assert without_rate._callers == {}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_place_comes_back_after_an_error(error):
    admission = Admission(Limits(requests=1, bytes=100))
    for _ in range(3):
        with contextlib.suppress(error), admission.admit("a", 70):
            raise error
        with contextlib.suppress(error), admission.stream("a"):
            raise error
    assert inside(admission) == (0, 0)
    assert admission.streams == 0


def test_refused_request_takes_no_place():
    admission = Admission(Limits(requests=1, bytes=100))
    with admission.admit("a", 50):
        for _ in range(3):
            with contextlib.suppress(Overloaded), admission.admit("a", 10):
                pass
        assert inside(admission) == (1, 50)
    assert inside(admission) == (0, 0)


def test_draining_refuses_what_comes_and_keeps_what_is_inside():
    admission = Admission(Limits())
    with admission.admit("a", 10):
        admission.draining = True
        with pytest.raises(ShuttingDown, match="shutting down"), admission.admit("a", 1):
            pass
        with pytest.raises(ShuttingDown, match="shutting down"), admission.stream("a"):
            pass
        assert inside(admission) == (1, 10)
    assert inside(admission) == (0, 0)
