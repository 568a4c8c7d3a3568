"""Ordered and latest delivery of a stream, simulated for one camera on a slow device."""

from __future__ import annotations

from dataclasses import dataclass

from .svg import Picture

FRAME_S, BATCH_S = 1 / 30, 0.1
FRAMES = 15
IN_FLIGHT = 2  # of an ordered stream


@dataclass
class Frame:
    """A frame's times in seconds.

    Attributes:
        taken: When the camera took it.
        sent: When it left the client.
        start: When its batch began; None if it was dropped.
        answered: When its answer was sent.
    """

    taken: float
    sent: float
    start: float | None
    answered: float


def ordered() -> list[Frame]:
    """Compute every frame, in order, with at most `IN_FLIGHT` of them in the server."""
    frames: list[Frame] = []
    for number in range(FRAMES):
        taken = number * FRAME_S
        room = frames[number - IN_FLIGHT].answered if number >= IN_FLIGHT else 0.0
        sent = max(taken, room)
        start = max(sent, frames[-1].answered if frames else 0.0)
        frames.append(Frame(taken, sent, start, start + BATCH_S))
    return frames


def latest() -> list[Frame]:
    """Compute one frame at a time; a newer one replaces the pending one."""
    frames: list[Frame] = []
    free = 0.0  # when the batch in progress ends
    pending: Frame | None = None
    for number in range(FRAMES):
        now = number * FRAME_S
        if pending is not None and free <= now + 1e-9:
            pending.start, pending.answered = free, free + BATCH_S
            free, pending = pending.answered, None
        frame = Frame(now, now, None, now)
        frames.append(frame)
        if free <= now:
            frame.start, frame.answered = now, now + BATCH_S
            free = frame.answered
            continue
        if pending is not None:
            pending.answered = now  # dropped
        pending = frame
    if pending is not None:  # the last frame before the end is always computed
        pending.start, pending.answered = free, free + BATCH_S
    return frames


def draw() -> str:
    """Return the picture."""
    picture = Picture(640, 420, "Ordered delivery falls behind; latest delivery drops frames")
    left, scale = 84, 930
    until = 0.585

    def at(seconds: float) -> float:
        return left + seconds * scale

    panels = (
        (30, "Ordered: every frame is answered; the sender is held back", ordered(), "blue"),
        (220, "Latest: a newer frame replaces the pending one", latest(), "green"),
    )
    for top, title, frames, tone in panels:
        picture.text(12, top, title, size=15, bold=True)
        for y, name in ((36, "camera"), (82, "device"), (122, "answers")):
            picture.text(left - 14, top + y + 4, name, anchor="end")
        shown = [frame for frame in frames if frame.taken <= until]
        for number, frame in enumerate(shown):
            x = at(frame.taken)
            picture.text(x, top + 24, str(number + 1), size=11, anchor="middle", tone="muted")
            picture.dot(x, top + 36, tone=tone if frame.start is not None else "red")
            if frame.start is None:
                end = (at(frame.answered), top + 122)
                picture.line([(x, top + 36), end], tone="red", dashed=True, width=1)
                picture.cross(*end)
            elif frame.start < until - 0.04:
                picture.line([(x, top + 36), (at(frame.start), top + 66)], tone=tone)
        for number, frame in enumerate(shown):
            if frame.start is None or frame.start >= until - 0.04:
                continue
            wide = min(BATCH_S, until - frame.start) * scale - 2
            text = f"frame {number + 1}"
            picture.box(at(frame.start), top + 66, wide, 32, text, tone=tone, size=12)
            if frame.answered <= until:
                x, age = at(frame.answered), frame.answered - frame.taken
                picture.line([(x - 1, top + 98), (x - 1, top + 122)], tone=tone)
                picture.dot(x - 1, top + 122, tone=tone, radius=5)
                age_text = f"{age * 1e3:.0f} ms old"
                picture.text(x - 1, top + 142, age_text, size=11, anchor="middle", tone=tone)
    picture.cross(left, 388)
    picture.text(
        left + 12,
        392,
        "dropped: answered at once with the id of its replacement",
        size=12,
        tone="red",
    )
    picture.text(
        12,
        412,
        "Simulated: 30 frames/s, batches of one frame and 100 ms; two ordered frames in flight.",
        size=12,
        tone="muted",
    )
    return picture.svg()
