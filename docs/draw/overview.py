"""The way of an image through client and server, and the components beside it."""

from __future__ import annotations

from itertools import pairwise

from .svg import Picture


def draw() -> str:
    """Return the picture."""
    picture = Picture(
        640, 436, "Clients send images over gRPC; the server decodes and batches them"
    )
    picture.box(206, 12, 422, 412, tone="grey")
    picture.text(218, 34, "resnet50-server", size=15, bold=True)
    for y, text in (
        (52, "Application\nPython SDK"),
        (132, "resnet50\ncommand line"),
        (212, "Other languages\ngRPC, KServe v2"),
    ):
        picture.box(12, y, 136, 56, text, tone="orange", bold=True)
        picture.line([(148, y + 28), (177, y + 28)], tone="ink", width=2)
    picture.line([(177, 80), (177, 240)], tone="ink", width=2)
    picture.line([(177, 80), (222, 80)], arrow=True, tone="ink", width=2)
    picture.text(186, 72, "gRPC", size=12)
    path = [
        (52, "gRPC edge\nidentity, quotas, streams"),
        (128, "Admission\nlimits, deadlines"),
        (204, "Decode pool\nbytes to uint8 pixels"),
        (280, "Scheduler\nqueues, dynamic batches"),
        (356, "Engine\nCPU or CUDA"),
    ]
    for y, text in path:
        picture.box(222, y, 200, 54, text, tone="blue", bold=True)
    for (above, _), (below, _) in pairwise(path):
        picture.line([(322, above + 54), (322, below)], arrow=True, tone="blue", width=2)
    beside = [
        (52, "Traffic splits\ncanary, shadow", "violet"),
        (128, "Response cache\noptional", "violet"),
        (204, "Telemetry\nmetrics, traces, logs", "green"),
        (318, "Variants\nverified weights,\nhot swap", "violet"),
    ]
    for y, text, tone in beside:
        height = 92 if text.count("\n") > 1 else 54
        picture.box(462, y, 152, height, text, tone=tone, bold=True)
    picture.line([(422, 79), (462, 79)], arrow=True, tone="violet")
    picture.line([(422, 155), (462, 155)], arrow=True, tone="violet")
    picture.line([(422, 231), (462, 231)], arrow=True, tone="green", dashed=True)
    picture.line(
        [(422, 300), (442, 300), (442, 244), (462, 244)], arrow=True, tone="green", dashed=True
    )
    picture.line([(462, 383), (422, 383)], arrow=True, tone="violet")
    picture.box(12, 356, 136, 54, "Weights on disk\nread, checked", tone="orange", bold=True)
    picture.line(
        [(148, 394), (177, 394), (177, 418), (538, 418), (538, 410)], arrow=True, tone="orange"
    )
    return picture.svg()
