from __future__ import annotations

import threading

import pytest

from resnet50_server.engines.cuda.buckets import Buckets
from resnet50_server.engines.cuda.buffer_pool import BufferPool


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (32, (1, 2, 4, 8, 16, 32)),
        (48, (1, 2, 4, 8, 16, 32, 48)),
        (33, (1, 2, 4, 8, 16, 32, 33)),
    ],
)
def test_buckets_are_powers_of_two_and_the_largest_batch(largest, sizes):
    assert Buckets(largest).sizes == sizes


def test_every_batch_gets_the_smallest_bucket_that_holds_it():
    buckets = Buckets(48)
    assert [buckets.bucket_for(images) for images in (1, 2, 3, 4, 5, 31, 32, 33, 48)] == (
        [1, 2, 4, 4, 8, 32, 32, 48, 48]
    )


@pytest.mark.parametrize("images", [0, 49])
def test_batch_that_no_bucket_holds_is_refused(images):
    with pytest.raises(ValueError, match="prepared for 1 to 48"):
        Buckets(48).bucket_for(images)


def test_own_sizes_replace_the_powers_of_two():
    assert Buckets(24, [6, 12]).sizes == (6, 12, 24)
    with pytest.raises(ValueError, match="between 1 and max_batch_size"):
        Buckets(24, [6, 25])


def test_slot_belongs_to_one_thread_at_a_time():
    pool = BufferPool([[], []])
    holders: list[int] = []
    overlaps = []

    def use(number: int) -> None:
        for _ in range(200):
            with pool.acquire() as slot:
                slot.append(number)
                holders.append(number)
                overlaps.append(len(slot) > 1 or len(holders) > 2)
                holders.remove(number)
                slot.remove(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(overlaps) == 1200
    assert not any(overlaps)


def test_slot_of_a_failed_batch_is_given_back():
    pool = BufferPool(["only"])
    with pytest.raises(RuntimeError), pool.acquire():
        raise RuntimeError
    with pool.acquire() as slot:
        assert slot == "only"


def test_all_slots_are_had_once_the_last_one_is_given_back():
    pool = BufferPool(["a", "b"])
    have_all, others = threading.Event(), []

    def take_all() -> None:
        with pool.acquire_all() as slots:
            others.extend(slots)
            have_all.set()

    with pool.acquire() as taken:
        thread = threading.Thread(target=take_all)
        thread.start()
        assert not others
    assert have_all.wait(60)
    thread.join()
    assert sorted(others) == ["a", "b"]
    with pool.acquire(), pool.acquire():
        assert taken in others
