"""A hot swap: the steps of a load, and which weights answer meanwhile."""

from __future__ import annotations

from .svg import Picture


def draw() -> str:
    """Return the picture."""
    picture = Picture(640, 322, "New weights load beside the old ones, then replace them at once")
    left, switch, end = 112, 424, 628
    picture.text(12, 26, "variants load NAME --replace", size=15, bold=True)
    for y, name in ((66, "requests"), (128, "new weights"), (216, "old weights")):
        picture.text(left - 12, y + 4, name, anchor="end", bold=True)
    count = 22
    for number in range(count):
        x = left + 10 + number * (end - left - 16) / (count - 1)
        picture.dot(x, 66, tone="green" if x > switch else "blue", radius=5)
    picture.text(left, 48, "answered by the old weights", tone="blue")
    picture.text(switch + 10, 48, "by the new weights", tone="green")
    steps = [
        "1 Read\nand\ncheck",
        "2 Reserve\nmemory",
        "3 Build,\nwarm up",
        "4 Verify\nagainst\nPyTorch",
    ]
    wide = (switch - left) / len(steps)
    for number, text in enumerate(steps):
        picture.box(left + number * wide, 96, wide - 4, 64, text, tone="orange", size=12)
    picture.box(switch, 96, end - switch, 64, "ready", tone="green", bold=True)
    picture.box(left, 188, switch - left - 4, 52, "ready", tone="blue", bold=True)
    picture.box(
        switch,
        188,
        122,
        52,
        "6 Drain\nrequests in flight",
        tone="blue",
        dashed=True,
        size=12,
        bold=True,
    )
    picture.text(switch + 130, 219, "freed", tone="muted")
    picture.line([(switch - 2, 36), (switch - 2, 268)], tone="ink", width=2)
    picture.text(
        switch - 2, 286, "5 Switch: one iteration of the event loop", anchor="middle", bold=True
    )
    picture.text(
        left, 178, "if one of these fails, the old weights keep serving", size=12, tone="red"
    )
    picture.text(
        12,
        310,
        "Steps numbered as in the text. While both are in memory, both count.",
        tone="muted",
    )
    return picture.svg()
