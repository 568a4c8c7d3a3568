"""The flow of a request through a traffic split: canary, and shadow."""

from __future__ import annotations

from .svg import Picture


def draw() -> str:
    """Return the picture."""
    picture = Picture(
        640, 412, "A canary answers some callers; a shadow only computes and compares"
    )
    picture.box(
        200, 12, 240, 48, "Request of a caller\nnames the variant, or none", tone="grey", bold=True
    )
    picture.box(
        160, 92, 320, 52, "Hash\nSHA-256(variant, candidate, caller key)", tone="violet", bold=True
    )
    picture.line([(320, 60), (320, 92)], arrow=True)
    picture.box(12, 196, 250, 52, "Variant\nanswers 80% of the callers", tone="blue", bold=True)
    picture.box(378, 196, 250, 52, "Candidate\nanswers 20% of the callers", tone="green", bold=True)
    picture.line([(240, 144), (240, 170), (137, 170), (137, 196)], arrow=True, tone="blue")
    picture.line([(400, 144), (400, 170), (503, 170), (503, 196)], arrow=True, tone="green")
    picture.text(503, 162, "canary", anchor="middle", tone="green", bold=True)
    picture.text(137, 162, "all others", anchor="middle", tone="blue", bold=True)
    picture.box(
        12, 338, 616, 40, "Clients: each response names its variant and digest", tone="grey"
    )
    picture.line([(60, 248), (60, 338)], arrow=True, tone="blue")
    picture.line([(590, 248), (590, 338)], arrow=True, tone="green")
    picture.text(68, 316, "response", size=12, tone="blue")
    picture.text(582, 316, "response", size=12, tone="green", anchor="end")
    picture.line([(262, 222), (378, 222)], arrow=True, dashed=True, tone="orange")
    picture.text(320, 198, "shadow", anchor="middle", tone="orange", bold=True)
    picture.text(320, 214, "5% of images", size=12, anchor="middle", tone="orange")
    picture.box(
        190,
        270,
        260,
        52,
        "Compare, count\ntop-1 agreement, cosine similarity",
        tone="orange",
        bold=True,
    )
    picture.line([(220, 248), (220, 270)], arrow=True, dashed=True, tone="orange")
    picture.line([(420, 248), (420, 270)], arrow=True, dashed=True, tone="orange")
    picture.text(
        12,
        400,
        "A shadow is computed after the response is sent. Clients never see its result.",
        tone="muted",
    )
    return picture.svg()
