"""Progress of a run: reported in intervals, with the rate and time of this run."""

from __future__ import annotations

from resnet50_bulk.progress import Progress, ProgressObserver


def test_progress_is_reported_in_intervals_and_at_the_end():
    now, seen = [0.0], []
    observer = ProgressObserver(seen.append, interval_s=10.0, clock=lambda: now[0])
    observer.on_start(total=40, done=10)
    for number in range(30):
        now[0] += 1.0
        if number % 10:
            observer.on_result("a")
        else:
            observer.on_failed("b", ValueError("broken"))
    assert [(one.done, one.failed) for one in seen] == [(20, 1), (30, 2), (40, 3)]
    assert [one.images_per_s for one in seen] == [1.0, 1.0, 1.0]
    assert [one.remaining_s for one in seen] == [20.0, 10.0, 0.0]


def test_rate_leaves_out_images_of_earlier_runs():
    now, seen = [0.0], []
    observer = ProgressObserver(seen.append, clock=lambda: now[0])
    observer.on_start(total=1000, done=998)
    now[0] = 4.0
    observer.on_result("a")
    observer.on_result("b")
    assert seen == [Progress(1000, 0, 1000, 0.5)]


def test_progress_is_one_line_with_the_time_left():
    assert str(Progress(20, 1, 40, 2.0)) == "20 of 40 images, 1 failed, 2.0 images/s, 10 s left"
    assert str(Progress(0, 0, 40, 0.0)) == "0 of 40 images, 0 failed, 0.0 images/s"
