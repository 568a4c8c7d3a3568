from __future__ import annotations

import asyncio
import contextlib

import pytest

from resnet50_server.context import BULK_EVERY
from resnet50_server.errors import Overloaded, ShuttingDown
from resnet50_server.inference.admission import Admission, Permit
from resnet50_server.inference.quotas import REMEMBERED_CALLERS, Limits
from tests.support import virtual_time


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


def test_request_beyond_max_requests_names_the_limit():
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


def test_bytes_that_arrive_later_are_counted_and_released():
    admission = Admission(Limits(bytes=100))
    with admission.admit("a") as first, admission.admit("b") as second:
        first.add_bytes(60)
        with refused_by("max_request_bytes"):
            second.add_bytes(41)
        second.add_bytes(40)
        assert inside(admission) == (2, 100)
    assert inside(admission) == (0, 0)


def test_lone_request_is_admitted_however_large():
    # Otherwise a limit below the largest message would refuse that message for ever.
    admission = Admission(Limits(bytes=100, bytes_per_caller=50))
    with admission.admit("a", 1000), pytest.raises(Overloaded), admission.admit("b", 1):
        pass
    with admission.admit("a", 1):
        pass


def test_image_whose_bytes_have_not_arrived_is_judged_by_them_later():
    admission = Admission(Limits(bytes=100))
    with admission.admit("a", 1000), admission.admit("b") as permit:
        admission.check("b")
        with refused_by("max_request_bytes"):
            permit.add_bytes(1)
        assert inside(admission) == (2, 1000)


def test_lone_image_may_grow_beyond_the_limits_as_it_arrives():
    admission = Admission(Limits(bytes=100, bytes_per_caller=50))
    with admission.admit("a", 40) as permit:
        permit.add_bytes(1000)
        assert inside(admission) == (1, 1040)


def test_one_caller_is_limited_to_its_share():
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


def test_permit_that_becomes_bulk_keeps_the_limits_of_bulk():
    admission = Admission(Limits(requests=4, bytes=100))  # bulk: 3 and 75
    with (
        admission.admit("a", 40),
        admission.admit("b", 36) as large,
        refused_by("max_request_bytes"),
    ):
        large.make_bulk()
    with admission.admit("a"), admission.admit("a"), admission.admit("b") as third:
        third.make_bulk()
        with admission.admit("c") as fourth, refused_by("max_requests") as refused:
            fourth.make_bulk()
        assert "reserved for interactive" in str(refused.value)
        third.make_bulk()  # is bulk already
    with admission.admit("a", 1000) as alone:
        alone.make_bulk()
    assert inside(admission) == (0, 0)


@pytest.mark.parametrize("what", ["streams", "uploads"])
def test_streams_and_uploads_are_bounded_in_all_and_by_caller(what):
    admission = Admission(Limits(**{what: 3, f"{what}_per_caller": 2}))
    count = admission.stream if what == "streams" else admission.upload
    for _ in range(2):  # what has ended counts no longer
        with count("a"), count("a"):
            with refused_by(f"max_{what}_per_caller") as refused, count("a"):
                pass
            assert f"max_{what}_per_caller (2): 2 {what} of a are open" in str(refused.value)
            with count("b"), refused_by(f"max_{what}") as refused, count("c"):
                pass
            assert f"max_{what} (3): 3 {what} are open" in str(refused.value)
    assert (admission.streams, admission.callers) == (0, 0)


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


def test_refused_request_does_not_count_for_the_rate():
    admission = Admission(Limits(requests=1, rate_per_caller=1.0), Clock())
    with admission.admit("b"):
        for _ in range(3):
            with refused_by("max_requests"), admission.admit("a"):
                pass
    with admission.admit("a"):
        pass


def test_bulk_leaves_a_share_to_interactive_requests():
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


def test_bulk_is_admitted_with_a_limit_of_one():
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
    assert admission.callers <= REMEMBERED_CALLERS + 1
    clock.now += 10.0
    without_rate = Admission(Limits())
    with without_rate.admit("a"):
        pass
    assert without_rate.callers == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_permit_is_released_after_an_error(error):
    admission = Admission(Limits(requests=1, bytes=100))
    for _ in range(3):
        with contextlib.suppress(error), admission.admit("a", 70):
            raise error
        with contextlib.suppress(error), admission.stream("a"):
            raise error
    assert inside(admission) == (0, 0)
    assert admission.streams == 0


def test_refused_request_takes_no_permit():
    admission = Admission(Limits(requests=1, bytes=100))
    with admission.admit("a", 50):
        for _ in range(3):
            with contextlib.suppress(Overloaded), admission.admit("a", 10):
                pass
        assert inside(admission) == (1, 50)
    assert inside(admission) == (0, 0)


def test_draining_refuses_new_requests_and_keeps_those_in_flight():
    admission = Admission(Limits())
    with admission.admit("a", 10):
        admission.draining = True
        with pytest.raises(ShuttingDown, match="shutting down"), admission.admit("a", 1):
            pass
        with pytest.raises(ShuttingDown, match="shutting down"), admission.stream("a"):
            pass
        assert inside(admission) == (1, 10)
    assert inside(admission) == (0, 0)


# Frames that wait


class Frames:
    """Frames that ask to be admitted, each in a task; `admitted` says in which order they were."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.admitted: list[str] = []
        self.places: dict[str, Permit] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str, length: int = 1, bulk: bool = False) -> None:
        """Let frames ask in this order; the first letter is the caller."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._ask(name, length, bulk))
            await self.settle()

    async def _ask(self, name: str, length: int, bulk: bool) -> None:
        self.places[name] = await self.admission.acquire(name[0], length, bulk=bulk)
        self.admitted.append(name)

    async def settle(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def answer(self, name: str) -> None:
        self.places.pop(name).release()
        await self.settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await self.settle()


async def test_frames_are_admitted_in_order_of_arrival():
    frames = Frames(Admission(Limits(requests=2)))
    await frames.ask("a1", "a2", "a3", "a4")
    assert frames.admitted == ["a1", "a2"]
    assert frames.admission.waiting == 2
    await frames.answer("a2")
    await frames.answer("a1")
    assert frames.admitted == ["a1", "a2", "a3", "a4"]
    assert (frames.admission.requests, frames.admission.waiting) == (2, 0)


async def test_callers_share_permits_whatever_one_has_queued():
    frames = Frames(Admission(Limits(requests=1)))
    await frames.ask("a1", "a2", "a3", "a4", "b1", "b2")
    for _ in range(5):
        await frames.answer(frames.admitted[-1])
    assert frames.admitted == ["a1", "a2", "b1", "a3", "b2", "a4"]


async def test_caller_at_its_own_limit_delays_no_other():
    frames = Frames(Admission(Limits(requests=4, requests_per_caller=1)))
    await frames.ask("a1", "a2", "a3", "b1", "c1", "b2")
    assert frames.admitted == ["a1", "b1", "c1"]
    await frames.answer("b1")
    await frames.answer("a1")
    assert frames.admitted == ["a1", "b1", "c1", "b2", "a2"]


async def test_large_frame_is_not_overtaken_until_it_never_fits():
    frames = Frames(Admission(Limits(bytes=100)))
    await frames.ask("a1", "b1", length=40)
    await frames.ask("c1", length=90)
    await frames.ask("d1", length=10)
    assert frames.admitted == ["a1", "b1"]
    await frames.answer("a1")
    assert frames.admitted == ["a1", "b1"]
    await frames.answer("b1")
    assert frames.admitted == ["a1", "b1", "c1", "d1"]


async def test_frame_cancelled_while_waiting_lets_others_past():
    frames = Frames(Admission(Limits(bytes=100)))
    await frames.ask("a1", length=50)
    await frames.ask("b1", length=90)
    await frames.ask("c1", length=10)
    await frames.cancel("b1")
    assert frames.admitted == ["a1", "c1"]
    assert frames.admission.waiting == 0
    assert inside(frames.admission) == (2, 60)


async def test_frame_cancelled_at_admission_releases_its_permit():
    frames = Frames(Admission(Limits(requests=1)))
    await frames.ask("a1", "a2")
    frames.places["a1"].release()  # admits a2, whose task has not run yet
    await frames.cancel("a2")
    assert inside(frames.admission) == (0, 0)
    assert frames.admitted == ["a1"]


async def test_draining_refuses_frames_that_wait():
    frames = Frames(Admission(Limits(requests=1)))
    await frames.ask("a1", "a2", "b1")
    frames.admission.drain()
    await frames.settle()
    for name in ("a2", "b1"):
        with pytest.raises(ShuttingDown):
            await frames.tasks[name]
    await frames.answer("a1")
    assert frames.admitted == ["a1"]


async def test_draining_refuses_frames_of_callers_at_their_limits():
    frames = Frames(Admission(Limits(requests=4, requests_per_caller=1)))
    await frames.ask("a1", "a2")
    await frames.ask("a3", bulk=True)
    frames.admission.drain()
    await frames.settle()
    for name in ("a2", "a3"):
        with pytest.raises(ShuttingDown):
            await frames.tasks[name]
    await frames.answer("a1")
    assert frames.admitted == ["a1"]
    assert (frames.admission.requests, frames.admission.waiting) == (0, 0)


async def test_released_bytes_of_a_caller_admit_its_bulk_frames():
    """Its interactive frame needs more than was released, and waits on."""
    frames = Frames(Admission(Limits(bytes_per_caller=100)))
    await frames.ask("a1", length=60)
    await frames.ask("a2", length=35)
    await frames.ask("a3", length=80)
    await frames.ask("a4", length=10, bulk=True)
    assert frames.admitted == ["a1", "a2"]
    await frames.answer("a2")
    assert frames.admitted == ["a1", "a2", "a4"]
    await frames.answer("a1")
    assert frames.admitted == ["a1", "a2", "a4", "a3"]
    assert frames.admission.waiting == 0


async def test_bulk_frames_wait_behind_interactive_but_not_forever():
    frames = Frames(Admission(Limits(requests=1)))
    await frames.ask("a0")
    await frames.ask("b0", "b1", bulk=True)
    await frames.ask(*(f"a{number}" for number in range(1, 41)))
    while len(frames.admitted) < 42:
        await frames.answer(frames.admitted[-1])
    assert frames.admitted.index("b0") == BULK_EVERY
    assert frames.admitted.index("b1") == 2 * BULK_EVERY


async def test_frames_admitted_before_bulk_waits_give_it_no_turn():
    frames = Frames(Admission(Limits(requests=1)))
    await frames.ask(*(f"a{number}" for number in range(2 * BULK_EVERY)))
    for _ in range(BULK_EVERY):
        await frames.answer(frames.admitted[-1])
    await frames.ask("b0", bulk=True)
    await frames.answer(frames.admitted[-1])
    assert frames.admitted[-1] == f"a{BULK_EVERY + 1}"


async def test_frame_above_the_rate_is_admitted_later():
    frames = Frames(Admission(Limits(rate_per_caller=20.0)))
    await frames.ask(*(f"a{number}" for number in range(21)))
    await frames.ask("b0")
    assert frames.admitted == [*(f"a{number}" for number in range(20)), "b0"]
    await asyncio.wait_for(frames.tasks["a20"], 60)


async def test_single_requests_and_frames_that_wait_take_turns():
    frames = Frames(Admission(Limits(requests=2)))
    admission, singles = frames.admission, []
    await frames.ask(*(f"a{number}" for number in range(20)))
    got = ""
    for _ in range(12):
        before = len(frames.admitted)
        try:
            singles.append(admission.admit("s"))
            got += "s"
        except Overloaded as full:
            assert f"and {admission.waiting} frames wait" in str(full)
        (singles.pop() if singles else frames.places.pop(next(iter(frames.places)))).release()
        await frames.settle()
        got += "f" * (len(frames.admitted) - before)
    assert "sfsfsf" in got
    assert "ff" not in got.lstrip("f")


def test_reserved_bytes_are_kept_for_the_refused_request():
    async def scenario() -> None:
        frames = Frames(Admission(Limits(bytes=100)))
        await frames.ask("a1", "a2", length=40)
        await frames.ask("b1", length=60)
        with refused_by("max_request_bytes"):
            frames.admission.admit("s", 50)
        await frames.answer("a1")
        assert frames.admitted == ["a1", "a2"]
        with frames.admission.admit("s", 50):
            assert inside(frames.admission) == (2, 90)
        await frames.settle()
        assert frames.admitted == ["a1", "a2", "b1"]

    virtual_time.run(scenario())


async def test_reserved_permit_of_a_unary_call_expires():
    frames = Frames(Admission(Limits(requests=1)))
    await frames.ask("a1", "a2")
    with refused_by("max_requests"):
        frames.admission.admit("s")
    await frames.answer("a1")
    assert frames.admitted == ["a1"]
    await asyncio.wait_for(frames.tasks["a2"], 60)
    assert frames.admission.requests == 1
