"""`resnet50 top`: what the view polls like at fixed sizes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from datetime import datetime

import pytest
from prometheus_client import generate_latest
from rich.console import Console

from resnet50_cli import formatting
from resnet50_cli.top import cells
from resnet50_cli.top.snapshot import ServerSnapshot, Snapshot
from resnet50_cli.top.variant_status import VariantStatus
from resnet50_cli.top.view import View
from resnet50_metrics.interval import Interval
from resnet50_metrics.scrape import Scrape, parse
from resnet50_metrics.server_metrics import Latency, ServerMetrics
from tests.support.exporting import Exported

UPTIME_S = 3 * 3600 + 12 * 60 + 5


def scraped(exported: Exported, time_s: float) -> Scrape:
    return Scrape(time_s, parse(generate_latest(exported.registry).decode()))


def interval(
    images: int = 80, trouble: bool = False, variants: Sequence[str] = ("IMAGENET1K_V2", "digits")
) -> Interval:
    """Return two seconds of a server."""
    exported = Exported(started_s=1000.0)
    for number, name in enumerate(variants):
        exported.load(name, default=number == 0, digest=f"{trouble + 10:02}" * 32)
    for limit in ("max_queue_size", "deadline"):
        exported.shed.labels(limit)
    before = scraped(exported, 10.0)
    exported.cpu.inc(2.86)
    exported.memory.set(812 * 2**20)
    exported.busy.labels("cpu").inc(1.6)
    exported.lag.observe(0.003)
    exported.inside_requests.set(12)
    exported.inside_bytes.set(3 * 2**20)
    exported.open_streams.set(4)
    exported.decode_threads.set(2)
    main = variants[0]
    exported.answer(main, images, total_s=0.08)
    exported.queue_images.labels(main).set(12)
    exported.queue_age_s.labels(main).set(0.004)
    exported.alpha_s.labels(main).set(0.0021)
    exported.beta_s.labels(main).set(0.000147)
    if trouble:
        exported.ready.set(0)
        exported.queue_age_s.labels(main).set(2.5)
        for count, code in ((6, "RESOURCE_EXHAUSTED"), (2, "INTERNAL")):
            exported.requests.labels("Classify", main, code).inc(count)
        exported.shed.labels("max_queue_size").inc(6)
        exported.cancelled.labels("queue").inc(1)
        exported.dropped.labels(main).inc(30)
        exported.decode_failures.labels("TRUNCATED").inc(3)
        exported.batch_failures.labels(main).inc(1)
    return Interval.between(before, scraped(exported, 12.0))


def server(name: str, one: Interval) -> ServerSnapshot:
    return ServerSnapshot(
        name, f"http://{name}/metrics", "", 0.0, ServerMetrics.of(one, 1000 + UPTIME_S)
    )


def silent(name: str) -> ServerSnapshot:
    return ServerSnapshot(name, f"http://{name}/metrics", "connection refused", 12.4, None)


def snapshot(
    *servers: ServerSnapshot, intervals: Sequence[Interval], **statuses: VariantStatus
) -> Snapshot:
    total = Interval.total(intervals) if intervals else None
    return Snapshot(
        time=datetime(2026, 3, 1, 3, 0, 7).astimezone(),  # shown in local time
        interval_s=2.0,
        servers=servers,
        total=ServerMetrics.of(total, 1000 + UPTIME_S) if total is not None else None,
        variant_status=statuses,
    )


def one_server(**options) -> Snapshot:
    seen = interval(**options)
    return snapshot(server("127.0.0.1:9464", seen), intervals=[seen])


def rendered(view: View, width: int = 80, height: int = 24) -> list[str]:
    console = Console(record=True, width=width, height=height, file=io.StringIO())
    console.print(view)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    return [line.rstrip() for line in lines]


def shown(*snapshots: Snapshot, fit: bool = True, width: int = 80, height: int = 24) -> list[str]:
    view = View("q quits", fit=fit)
    for one in snapshots:
        view.show(one)
    lines = rendered(view, width, height)
    assert not fit or len(lines) <= height, "\n".join(lines)
    return lines


def troubled(width: int = 80, height: int = 24) -> list[str]:
    first, second = interval(), interval(trouble=True)
    seen = snapshot(
        server("gpu-1:9464", first),
        server("gpu-2:9464", second),
        silent("gpu-3:9464"),
        intervals=[first, second],
        IMAGENET1K_V2=VariantStatus("ready", True, 80.858),
        digits=VariantStatus("failed", True, None),
    )
    return shown(seen, width=width, height=height)


QUIET = """\
resnet50 top  127.0.0.1:9464                        every 2 s, 03:00:07, q quits
READY  version 0.1.0  up 3h12m  CPU 143%  memory 812 MiB  loop lag 4.95 ms
requests in flight 12, 3 MiB  streams 4  decoding 2, waiting 0  busy cpu 80%

images/s  40.0 █▅█ 6s, most 40.0

VARIANT          STATE   IMAGES/s  BATCH  QUEUE  OLDEST ms  α ms  β ms
IMAGENET1K_V2 *  loaded      40.0   4.00     12       4.00  2.10  0.15
digits           loaded         0      -      0       0.00     -     -

p50 / p99 ms          DECODE        QUEUE      COMPUTE        TOTAL
IMAGENET1K_V2 *  30.0 / 49.6  7.50 / 9.95  75.0 / 99.5  75.0 / 99.5
digits                     -            -            -            -

REQUESTS/s    OK  p50 / p99 ms  FAILED
Classify    40.0   75.0 / 99.5  0

REJECTED/s        0
CANCELLED/s       0
DROPPED FRAMES/s  0
NOT DECODED/s     0
FAILED BATCHES/s  0
"""

TROUBLED = """\
resnet50 top  3 servers                             every 2 s, 03:00:07, q quits
SERVER      STATE         UP   CPU    MEMORY  BUSY  QUEUE  IMAGES/s  FAILED/s
total       2 of 3 up  3h12m  286%  1624 MiB   80%     24      80.0      4.00
gpu-1:9464  READY      3h12m  143%   812 MiB   80%     12      40.0         0
gpu-2:9464  NOT READY  3h12m  143%   812 MiB   80%     12      40.0      4.00
gpu-3:9464  DOWN           -     -         -     -      -         -         -
gpu-3:9464: connection refused, for 12s
images/s  80.0
VARIANT          STATE   IMAGES/s  BATCH  QUEUE  OLDEST ms  α ms  β ms
IMAGENET1K_V2 *  ready       80.0   4.00     24       2500  2.10  0.15
digits           FAILED         0      -      0       0.00     -     -
p50 / p99 ms          DECODE        QUEUE      COMPUTE        TOTAL
IMAGENET1K_V2 *  30.0 / 49.6  7.50 / 9.95  75.0 / 99.5  75.0 / 99.5
digits                     -            -            -            -
REQUESTS/s    OK  p50 / p99 ms  FAILED
Classify    80.0   75.0 / 99.5  4.00  RESOURCE_EXHAUSTED 3.00, INTERNAL 1.00
REJECTED/s        3.00  max_queue_size 3.00
CANCELLED/s       0.50  queue 0.50
DROPPED FRAMES/s  15.0  IMAGENET1K_V2 15.0
NOT DECODED/s     1.50  TRUNCATED 1.50
FAILED BATCHES/s  0.50  IMAGENET1K_V2 0.50
IMAGENET1K_V2: the servers have different weights: 101010101010, 111111111111
digits: the servers have different weights: 101010101010, 111111111111
"""


def test_a_quiet_server_at_80_by_24():
    assert shown(one_server(), one_server(images=40), one_server()) == QUIET.splitlines()


def test_several_servers_in_trouble_at_80_by_24():
    assert troubled() == TROUBLED.splitlines()


def test_a_wide_window_says_more():
    lines = troubled(140, 40)
    assert [line for line in lines if "ACC@1" in line and "RUNS ON" in line]
    assert [line for line in lines if "80.86" in line and "onnxruntime cpu fp32" in line]
    assert [line for line in lines if "STREAMS" in line]


@pytest.mark.parametrize("height", range(8, 30))
def test_a_low_window_keeps_what_is_wrong(height):
    lines = shown(one_server(trouble=True), height=max(height, 13))
    for wanted in ("NOT READY", "2500", "REJECTED/s", "TRUNCATED", "FAILED BATCHES/s"):
        assert any(wanted in line for line in lines), wanted
    # Below that, at least the screen is not overrun.
    assert shown(one_server(), height=height)


def test_servers_that_need_a_look_are_shown_if_not_all_fit():
    good = interval()
    names = [f"gpu-{number}:9464" for number in range(20)]
    servers = [*(server(name, good) for name in names), silent("gpu-20:9464")]
    lines = shown(snapshot(*servers, intervals=[good] * 20))
    assert any(line.startswith("gpu-20:9464  DOWN") for line in lines)
    assert any("more servers: make the window taller" in line for line in lines)
    assert any(line.startswith("Classify") for line in lines)


def test_many_variants_are_cut_and_it_is_said():
    lines = shown(one_server(variants=[f"pets_{number:02}" for number in range(30)]))
    assert any("more variants: make the window taller" in line for line in lines)
    whole = shown(one_server(variants=[f"pets_{number:02}" for number in range(30)]), fit=False)
    assert sum("pets_29" in line for line in whole) == 2


def test_methods_without_calls_give_way_to_those_with():
    seen = interval(trouble=True)
    requests = dict(seen.per_s["resnet50_requests_total"])
    for name in ("AMethod", "BMethod", "CMethod", "DMethod"):
        labels = {"method": name, "variant": "", "code": "OK"}
        requests[frozenset(labels.items())] = 0.0
    seen = Interval({**seen.per_s, "resnet50_requests_total": requests}, seen.now)
    one = snapshot(server("gpu-1:9464", seen), intervals=[seen])
    assert any(line.startswith("AMethod") for line in shown(one, height=30))
    low = shown(one, height=18)
    assert any(line.startswith("Classify") for line in low)
    assert any("more methods: make the window taller" in line for line in low)


def test_long_batch_does_not_exceed_full_utilisation():
    assert [cells.busy(one) for one in (None, 0.4, 4.5)] == ["-", "40%", "100%"]


def test_long_names_give_way_to_figures():
    seen = interval()
    name = "resnet50-server-7.some-namespace.svc.cluster.local:9464"
    lines = shown(snapshot(server(name, seen), server("b:1", seen), intervals=[seen, seen]))
    (row,) = [line for line in lines if line.startswith("resnet50-ser")]
    assert row.split()[-8:] == ["3h12m", "143%", "812", "MiB", "80%", "12", "40.0", "0"]
    assert "…" in row


def test_nobody_who_answers_is_all_that_is_said():
    assert shown(snapshot(silent("gpu-1:9464"), intervals=[]))[1:] == [
        "DOWN: connection refused, for 12s"
    ]
    lines = shown(snapshot(silent("gpu-1:9464"), silent("gpu-2:9464"), intervals=[]))
    assert "0 of 2 up" in lines[2]
    assert lines[-1] == "gpu-2:9464: connection refused, for 12s"


def test_a_stuck_event_loop_is_named():
    seen = interval()
    stuck = Interval(seen.per_s, {"resnet50_build_info": seen.now["resnet50_build_info"]})
    lines = shown(snapshot(server("gpu-1:9464", stuck), intervals=[stuck]))
    assert lines[1].startswith("READY?  version 0.1.0  up -")
    assert "event loop is stuck" in lines[3]
    assert any(line.startswith("IMAGENET1K_V2  ") and " - " in line for line in lines)


def test_before_the_second_look_it_is_said_when_figures_come():
    seen = interval()
    first = Interval({}, seen.now)
    lines = shown(snapshot(server("gpu-1:9464", first), intervals=[first]))
    assert "images/s     -  rates are available in 2 s" in lines


def test_trouble_has_colours():
    console = Console(
        width=80,
        force_terminal=True,
        color_system="standard",
        legacy_windows=False,
        file=io.StringIO(),
    )
    view = View()
    view.show(one_server(trouble=True))
    console.print(view)
    text = console.file.getvalue()
    assert "\x1b[1;31mNOT READY\x1b[0m  version" in text
    assert re.search(r"\x1b\[1;31m *2500", text)
    assert "\x1b[33m3.00" in text


def test_figures_are_short_and_do_not_pretend():
    assert [formatting.rate(one) for one in (None, 0.0, 0.001, 0.4, 12.34, 1234.5)] == [
        *("-", "0", "<0.01", "0.40", "12.3", "1234"),
    ]
    assert [formatting.duration(one) for one in (None, 59.9, 61, 3700, 90000)] == [
        *("-", "59s", "1m01s", "1h01m", "1d01h"),
    ]
    assert cells.latency(Latency(3.0, 10_000.0, 10_000.0)) == "3.00 / ≥10000"
    assert cells.latency(Latency()) == "-"


def test_the_sparkline_shows_gaps_and_ends_with_now():
    assert cells.sparkline([1.0, None, 4.0, 8.0], 4) == "▂ ▅█"
    assert cells.sparkline([9.0, 0.0, 0.0], 2) == "▁▁"
    assert cells.sparkline([5.0], 3) == "  █"
