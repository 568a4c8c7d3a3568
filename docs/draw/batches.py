"""Batches over time: when requests wait, which of them are computed together, which is rejected."""

from __future__ import annotations

from itertools import cycle, groupby

from tests.support.simulation import Device, simulate

from .svg import Picture

DEVICE = Device(alpha_s=0.016, beta_s=0.003, limit=8)
# Milliseconds of arrival, and of the time that each request may take.
REQUESTS = [
    (3, 200),
    (9, 200),
    (14, 200),
    (27, 200),
    (31, 200),
    (36, 200),
    (41, 200),
    (48, 40),
    (53, 200),
    (59, 200),
    (66, 200),
    (112, 200),
]
TONES = ["blue", "orange", "green", "violet"]


def draw() -> str:
    """Return the picture, of a simulation of `REQUESTS` on `DEVICE`."""
    arrivals = [arrival / 1e3 for arrival, _ in REQUESTS]
    outcome = simulate(DEVICE, arrivals, [within / 1e3 for _, within in REQUESTS])
    ends = {number: round(arrivals[number] + took, 9) for number, took in outcome.latency_s.items()}
    row, top, left, scale = 19, 56, 92, 3.62
    bottom = top + row * len(REQUESTS)
    picture = Picture(
        640, bottom + 104, "Requests wait while a batch is computed, then form the next batch"
    )

    def at(seconds: float) -> float:
        return left + seconds * 1e3 * scale

    picture.text(12, 24, "A batch forms when the device is free", size=15, bold=True)
    picture.text(12, 42, "t(b) = 16 + 3·b ms, at most 8 images a batch (simulated)", tone="muted")
    for number, arrival in enumerate(arrivals):
        y = top + row * number
        picture.text(left - 12, y + 14, f"request {number + 1}", size=12, anchor="end")
        if number in outcome.refused:
            due = at(arrival + REQUESTS[number][1] / 1e3)
            picture.line([(at(arrival), y + 10), (due, y + 10)], dashed=True, tone="red")
            picture.line([(due, y + 3), (due, y + 17)], tone="red", width=2)
            picture.cross(at(arrival), y + 10)
            picture.text(due + 7, y + 14, "due here: rejected on arrival", size=12, tone="red")
    batches = groupby(sorted(ends, key=lambda number: (ends[number], number)), key=ends.__getitem__)
    lane = bottom + 14
    picture.text(left - 12, lane + 21, "device", size=12, anchor="end", bold=True)
    for (end, group), tone in zip(batches, cycle(TONES), strict=False):
        numbers = list(group)
        start = end - DEVICE.batch_s(len(numbers))
        for number in numbers:
            y = top + row * number
            picture.line([(at(arrivals[number]), y + 10), (at(start), y + 10)], tone=tone, width=2)
            picture.dot(at(arrivals[number]), y + 10, tone=tone)
            picture.bar(at(start), y + 3, at(end) - at(start) - 1, row - 5, tone=tone)
        images = "1 image" if len(numbers) == 1 else f"{len(numbers)} images"
        picture.box(at(start), lane, at(end) - at(start) - 1, 33, images, tone=tone, size=12)
    axis = lane + 44
    picture.line([(left, axis), (628, axis)], tone="faint")
    for ms in range(0, 140, 20):
        picture.line([(at(ms / 1e3), axis), (at(ms / 1e3), axis + 4)], tone="faint")
        picture.text(at(ms / 1e3), axis + 17, str(ms), size=11, anchor="middle", tone="muted")
    picture.text(628, axis + 17, "ms", size=11, anchor="end", tone="muted")
    picture.dot(left, axis + 34, tone="muted")
    picture.text(left + 8, axis + 38, "arrives", size=12, tone="muted")
    picture.line([(left + 66, axis + 34), (left + 96, axis + 34)], width=2)
    picture.text(left + 102, axis + 38, "waits", size=12, tone="muted")
    picture.bar(left + 150, axis + 28, 30, 12, tone="muted")
    picture.text(left + 186, axis + 38, "is computed", size=12, tone="muted")
    return picture.svg()
