"""The screen of `resnet50 top`, rendered by its own code from the figures of a run.

The run was of 2026-11-25 on two busy cores: a server with `--variants untrained=random:0 --engine
torch`, called by `resnet50 bench --rate 6`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from resnet50_cli.top.snapshot import ServerSnapshot, Snapshot
from resnet50_cli.top.variant_status import VariantStatus
from resnet50_cli.top.view import View
from resnet50_metrics.server_metrics import Latency, MethodMetrics, ServerMetrics, VariantMetrics

from . import terminal

# Images a second in the intervals so far; the first poll has none.
HISTORY = [None, 4.75, 3.56, 5.94, 5.94, 7.12, 9.5, 4.75, 5.94, 4.75, 3.56, 6.01]
NAME = "127.0.0.1:9464"
VARIANT = VariantMetrics(
    name="untrained",
    loaded=True,
    default=True,
    engines=("torch cpu fp32",),
    digests=("4bf9dceaab77",),
    images_per_s=6.01,
    batch_mean=1.0,
    queue_images=0,
    queue_age_ms=0.0,
    dropped_per_s=0.0,
    failed_batches_per_s=0.0,
    alpha_ms=0.0,
    beta_ms=82.5,
    stages={
        "decode": Latency(2.86, 7.35),
        "queue": Latency(0.33, 49.2),
        "compute": Latency(56.2, 74.6),
        "total": Latency(66.7, 188.0),
    },
)
SERVER = ServerMetrics(
    versions=("0.1.0",),
    ready=True,
    uptime_s=25.0,
    cpu_cores=0.63,
    memory_bytes=949 * 2**20,
    images_per_s=6.01,
    queue_images=0,
    requests_per_s=6.51,
    failed_per_s=0.0,
    inside_requests=1,
    inside_bytes=111 * 2**10,
    open_streams=0,
    decode_threads_busy=1,
    decode_queue_calls=0,
    event_loop_lag_ms=9.0,
    busy={"cpu": 0.32},
    refused_per_s={},
    cancelled_per_s={},
    dropped_per_s=0.0,
    undecodable_per_s={},
    failed_batches_per_s=0.0,
    variants=(VARIANT,),
    methods=(
        MethodMetrics("Classify", {"OK": 6.01}, Latency(66.7, 188.0)),
        MethodMetrics("ListVariants", {"OK": 0.5}, Latency(0.25, 0.49)),
    ),
)


def draw() -> str:
    """Return the picture."""
    view = View("q quits")
    for images_per_s in HISTORY:
        total = replace(SERVER, images_per_s=images_per_s)
        servers = (ServerSnapshot(NAME, f"http://{NAME}/metrics", "", 0.0, total),)
        # Without a time zone: the same text wherever it is drawn.
        now = datetime(2026, 11, 25, 3, 24, 10)
        status = VariantStatus("ready", trained=False, acc_at_1=None)
        view.show(Snapshot(now, 2.0, servers, total, {"untrained": status}))
    return terminal.draw(view, "The screen of resnet50 top: rates, latencies and rejections")
