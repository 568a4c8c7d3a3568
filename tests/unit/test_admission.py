from __future__ import annotations

import contextlib

import pytest

from resnet50_server.admission import Admission
from resnet50_server.errors import Overloaded, ShuttingDown


def inside(admission: Admission) -> tuple[int, int]:
    return admission.requests, admission.bytes


def test_request_beyond_max_requests_is_refused_and_names_the_limit():
    admission = Admission(max_requests=2, max_bytes=100)
    with admission.admit(1), admission.admit(1):
        with pytest.raises(Overloaded, match=r"max_requests \(2\)") as refused, admission.admit(1):
            pass
        assert refused.value.retry_after_s > 0
        assert inside(admission) == (2, 2)
    with admission.admit(1):
        assert inside(admission) == (1, 1)


def test_request_beyond_max_bytes_is_refused_and_names_the_limit():
    admission = Admission(max_requests=10, max_bytes=100)
    with admission.admit(60):
        with (
            pytest.raises(Overloaded, match=r"max_request_bytes \(100\)") as refused,
            admission.admit(41),
        ):
            pass
        assert refused.value.retry_after_s > 0
        with admission.admit(40):
            assert inside(admission) == (2, 100)


def test_lone_request_is_admitted_however_large():
    # Otherwise a limit below the largest message would refuse that message for ever.
    admission = Admission(max_requests=10, max_bytes=100)
    with admission.admit(1000), pytest.raises(Overloaded), admission.admit(1):
        pass
    with admission.admit(1):
        pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_place_comes_back_after_an_error(error):
    admission = Admission(max_requests=1, max_bytes=100)
    for _ in range(3):
        with contextlib.suppress(error), admission.admit(70):
            raise error
    assert inside(admission) == (0, 0)


def test_refused_request_takes_no_place():
    admission = Admission(max_requests=1, max_bytes=100)
    with admission.admit(50):
        for _ in range(3):
            with contextlib.suppress(Overloaded), admission.admit(10):
                pass
        assert inside(admission) == (1, 50)
    assert inside(admission) == (0, 0)


def test_draining_refuses_what_comes_and_keeps_what_is_inside():
    admission = Admission(max_requests=10, max_bytes=100)
    with admission.admit(10):
        admission.draining = True
        with pytest.raises(ShuttingDown, match="shutting down"), admission.admit(1):
            pass
        assert inside(admission) == (1, 10)
    assert inside(admission) == (0, 0)
