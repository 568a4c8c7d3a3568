"""The life of a request: its steps, on which thread, and where the time goes."""

from __future__ import annotations

from itertools import pairwise

from . import results
from .svg import Picture

FP32, INT8 = "fp32, the engine", "int8 made of"
LOOP, THREAD = 150, 410  # left edges of the lanes
WIDE = 216


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.3g}"


def draw_steps() -> str:
    """Return the picture of the steps, numbered as in docs/explanation/architecture.md."""
    alone, many = results.stages(INT8, "one caller"), results.stages(INT8, "16 callers")

    def times(stage: str) -> str:
        return f"{_ms(alone[stage])} ms · {_ms(many[stage])} ms"

    picture = Picture(640, 596, "A request passes the client, the event loop and two threads")
    for x, width, name in (
        (12, 110, "client"),
        (LOOP - 12, WIDE + 24, "event loop"),
        (THREAD - 12, WIDE + 24, "threads"),
    ):
        picture.box(x, 12, width, 544, tone="grey")
        picture.text(x + width / 2, 32, name, size=14, anchor="middle", bold=True)
    steps = [
        (46, "1 Headers\nidentity, scope, quotas"),
        (110, "2 Message\nreceived, holds a permit"),
        (174, "3 Routing\nvariant or its candidate"),
        (238, "4 Response cache\nSHA-256 of the image"),
        (302, "5 Acceptance\nready before the deadline?"),
        (398, f"7 Queue\n{times('queue')}"),
        (494, "8 Response\ntiming, digest of the weights"),
    ]
    for y, text in steps:
        picture.box(LOOP, y, WIDE, 48, text, tone="blue", bold=True)
    for (above, _), (below, _) in pairwise(steps[:5]):
        down = LOOP + WIDE / 2
        picture.line([(down, above + 48), (down, below)], arrow=True, tone="blue")
    picture.box(
        THREAD, 350, WIDE, 48, f"6 Decoding, decode-N\n{times('decode')}", tone="orange", bold=True
    )
    picture.box(
        THREAD,
        446,
        WIDE,
        48,
        f"7 Batch, engine-DEVICE-N\n{times('compute')}",
        tone="green",
        bold=True,
    )
    right, middle = LOOP + WIDE, THREAD + WIDE / 2
    picture.line([(right, 326), (middle, 326), (middle, 350)], arrow=True, tone="blue")
    picture.line([(middle, 398), (middle, 422), (right, 422)], arrow=True, tone="orange")
    picture.line([(right, 434), (middle, 434), (middle, 446)], arrow=True, tone="blue")
    picture.line([(middle, 494), (middle, 518), (right, 518)], arrow=True, tone="green")
    for y, text in ((60, "metadata"), (134, "message")):
        picture.line([(24, y), (LOOP, y)], arrow=True, tone="ink")
        picture.text(24, y - 6, text, size=12)
    picture.line([(LOOP, 518), (24, 518)], arrow=True, tone="ink")
    picture.text(24, 512, "reply", size=12)
    for y, text in ((82, "rejected"), (326, "rejected:\ntoo late")):
        picture.line([(LOOP, y), (24, y)], arrow=True, dashed=True, tone="red")
        picture.text(24, y + 15, text, size=12, tone="red")
    picture.line(
        [(right, 262), (630, 262), (630, 534), (right, 534)], arrow=True, dashed=True, tone="violet"
    )
    picture.text(middle, 256, "hit: no decoding, no batch", size=12, anchor="middle", tone="violet")
    picture.text(
        12,
        580,
        f"int8 on two cores, medians with one caller · with 16 callers ({results.date()})",
        tone="muted",
    )
    return picture.svg()


def draw_times() -> str:
    """Return the picture of the stages' shares."""
    picture = Picture(640, 232, "Shares of decoding, queueing and computing in the latency")
    stages = (
        ("decode", "decode", "orange"),
        ("queue", "queue", "violet"),
        ("compute", "compute", "green"),
        ("serve", "rest of the server", "blue"),
        ("outside", "network and client", "grey"),
    )
    x: float = 12
    for _, name, tone in stages:
        picture.bar(x, 14, 14, 14, tone=tone)
        picture.text(x + 20, 26, name)
        x += 42 + 6.6 * len(name)
    left, wide = 124.0, 420
    rows = [
        (f"{name}, {load}", results.stages(title, load))
        for name, title in (("fp32", FP32), ("int8", INT8))
        for load in ("one caller", "16 callers")
    ]
    for number, (name, each) in enumerate(rows):
        y = 46 + 38 * number
        inside = sum(each[stage] for stage in ("decode", "queue", "compute"))
        each["serve"] = max(0.0, each["server"] - inside)
        total = inside + each["serve"] + each["outside"]
        picture.text(left - 10, y + 18, name, anchor="end")
        x = left
        for stage, _, tone in stages:
            share = each[stage] / total
            picture.bar(x, y, share * wide, 28, tone=tone)
            x += share * wide
        picture.text(left + wide + 8, y + 18, f"{each['server'] + each['outside']:.3g} ms")
    picture.text(
        12,
        218,
        f"Sums of medians; JPEGs of 110 KB, two cores of a Xeon, {results.date()}",
        tone="muted",
    )
    return picture.svg()
