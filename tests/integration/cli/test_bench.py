"""`resnet50 bench` as scripts use it: a real process against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess

import pytest

import resnet50_server.parts
from resnet50_bench.benchmark import served
from resnet50_bench.calls import OK, calls_of
from resnet50_bench.plan import Load, Plan
from resnet50_bench.result import Bench
from resnet50_bench.runner import measure, measuring
from resnet50_bench.sample_images import images_of
from resnet50_client import UnavailableError
from resnet50_server.server import Server
from resnet50_server.settings import Settings
from tests.support import processes
from tests.support.pictures import encode, photo_like
from tests.support.serving import engines_of, gate, serving, until, until_result

ENVIRONMENT = {key: value for key, value in os.environ.items() if "RESNET50" not in key}


def bench(*arguments: object) -> subprocess.CompletedProcess:
    return processes.run("resnet50", "bench", *arguments, environment=ENVIRONMENT)


QUICK = ("--warm-up-s", 0, "--requests", 40)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--concurrency", 4),
        ("--rate", 200),
        ("--rate", 200, "--call", "embed", "--raw"),
        ("--shape", "upload", "--concurrency", 4),
        # Few uploads a second: on a busy machine they add up, and a server takes 16 of a caller.
        ("--shape", "upload", "--rate", 20, "--call", "embed", "--channels", 2),
        ("--shape", "stream", "--concurrency", 8, "--streams", 2),
        ("--shape", "stream", "--rate", 200, "--call", "embed"),
        ("--streams", 3, "--fps", 30, "--raw"),
        ("--streams", 3, "--fps", 30, "--delivery", "latest"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_every_shape_is_measured_under_every_load(null_address, arguments, photos):
    done = bench(photos, "--server", null_address, *arguments, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (run,) = found["runs"]
    assert (run["calls"], run["errors"]) == (40, {})
    assert run["latency_ms"]["count"] + run["dropped"] == 40
    assert run["good_share"] * 40 == pytest.approx(run["latency_ms"]["count"])
    assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["max"]
    assert run["latency_ms"]["p99"] is None  # of 40
    assert sum(run["batch_sizes"].values()) == run["latency_ms"]["count"]
    stages = run["stages_ms"]
    assert stages["server"]["max"] <= run["latency_ms"]["max"]
    assert found["variant"]["name"] == "IMAGENET1K_V2"
    assert found["variant"]["engine"] == "null"


def test_table_files_and_costs_of_the_server(null_process, null_address, tmp_path):
    out, html = tmp_path / "bench.json", tmp_path / "bench.html"
    done = bench(
        *("--server", null_address, "--server-pid", null_process.process.pid),
        *("--duration-s", 2, "--warm-up-s", 0.2, "--out", out, "--html", html),
    )
    assert done.returncode == 0, done.stderr
    assert "16 in flight" in done.stdout
    assert "IMAGENET1K_V2@" in done.stdout
    (run,) = Bench.load(out).runs
    assert run.server.cores > 0.05
    assert run.server.cpu_ms_per_answer == pytest.approx(
        run.server.cores / run.throughput_per_s * 1e3
    )
    assert run.server.peak_rss_mib > 50
    assert run.generator.cpu_share > 0
    assert run.generator.loop_lag_ms.count > 20
    assert "<svg" in html.read_text()


def test_sweep_finds_the_capacity_and_measures_shares_of_it(null_address, photos, tmp_path):
    out, html = tmp_path / "bench.json", tmp_path / "bench.html"
    done = bench(
        *(photos, "--server", null_address, "--sweep", "20%..80%x2", "--raw"),
        *("--duration-s", 0.5, "--warm-up-s", 0.1, "--out", out, "--html", html),
    )
    assert done.returncode == 0, done.stderr
    found = Bench.load(out)
    assert found.capacity_per_s == found.probes[-1].throughput_per_s
    rates = [run.load.rate_per_s for run in found.runs]
    assert rates == pytest.approx([0.2 * found.capacity_per_s, 0.8 * found.capacity_per_s], abs=0.1)
    assert "capacity" in done.stdout
    compared = bench("--compare", out, out)
    assert compared.returncode == 0
    assert "1.00" in compared.stdout
    told = json.loads(bench("--compare", out, out, "--json").stdout)
    # On a busy machine the load generator may have been late, which is said of both.
    assert all(one.startswith(("A, ", "B, ")) for one in told["differences"])
    assert {row["load"] for row in told["rows"]} > {"capacity"}


def test_comparison_warns_of_what_differs(null_address, photos, tmp_path):
    files = tmp_path / "one.json", tmp_path / "two.json"
    for file, call in zip(files, ("classify", "embed"), strict=True):
        arguments = (photos, "--server", null_address, "--call", call, *QUICK)
        assert bench(*arguments, "--out", file).returncode == 0
    done = bench("--compare", *files)
    assert done.returncode == 0
    assert "plan, operation: classify against embed" in done.stderr


def test_own_images_are_sent_and_broken_ones_count_as_errors(null_address, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(photo_like(32, 32)))
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    done = bench(tmp_path, "--server", null_address, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert run["errors"] == {"INVALID_ARGUMENT": 20}
    assert run["good_share"] == 0.5


def test_exit_codes_tell_what_went_wrong(null_address, tmp_path):
    address = null_address
    unreachable = bench("--server", "127.0.0.1:1")
    assert (unreachable.returncode, "127.0.0.1:1" in unreachable.stderr) == (3, True)
    unknown = bench("--server", address, "--variant", "cats")
    assert (unknown.returncode, "IMAGENET1K_V2" in unknown.stderr) == (1, True)
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    unanswered = bench(tmp_path, "--server", address, *QUICK)
    assert (unanswered.returncode, "no call succeeded" in unanswered.stderr) == (1, True)
    assert "40 INVALID_ARGUMENT" in unanswered.stdout
    rarely = ("--rate", 0.01, "--warm-up-s", 0, "--duration-s", 0.05)
    too_short = bench("--server", address, *rarely)
    assert (too_short.returncode, "a longer --duration-s" in too_short.stderr) == (1, True)
    for arguments, named in (
        (("--rate", 5, "--concurrency", 5), "--rate"),
        (("--sweep", "x"), "sweep"),
        (("--fps", 5, "--shape", "unary"), "fps"),
        (("--out", tmp_path / "bench.txt"), "--out"),
        (("--html", tmp_path / "nowhere" / "bench.html"), "--html"),
        (("--server-pid", 2**22 + 1), "server_pid"),
        (("--compare", tmp_path / "b.jpg", tmp_path / "b.jpg"), "b.jpg"),
    ):
        wrong = bench("--server", address, *arguments)
        assert (wrong.returncode, named in wrong.stderr) == (2, True), wrong.stderr
    for done in (unreachable, unknown, unanswered):
        assert "Traceback" not in done.stderr


def test_help_explains_every_option():
    done = bench("--help")
    assert done.returncode == 0
    for named in ("--sweep", "Poisson", "Exit codes", "RESNET50_SERVER", "--server-pid"):
        assert named in done.stdout


def counting(server) -> list[int]:
    """Count the images that a server's engine computes."""
    (engine,) = engines_of(server)
    computed = [0]
    inner = engine.run

    def run(images, *arguments):
        computed[0] += len(images)
        return inner(images, *arguments)

    engine.run = run
    return computed


async def test_servers_that_still_load_are_not_measured(monkeypatch):
    arrived, gate = asyncio.Event(), asyncio.Event()
    load = resnet50_server.parts.load_variant

    async def gated_load(*arguments):
        arrived.set()
        await gate.wait()
        return await load(*arguments)

    monkeypatch.setattr(resnet50_server.parts, "load_variant", gated_load)
    server = Server(Settings(listen=["127.0.0.1:0"], variants=["x=random:0"], engine="null"))
    starting = asyncio.create_task(server.start())
    try:
        await arrived.wait()
        with pytest.raises(UnavailableError, match="x is loading"):
            await asyncio.to_thread(served, plan(server))
        gate.set()
        await starting
        assert (await asyncio.to_thread(served, plan(server))).name == "x"
    finally:
        gate.set()
        await starting
        await server.stop()


async def test_servers_of_different_weights_are_not_one_load():
    async with serving(variants=["x=random:0"]) as one, serving(variants=["y=random:0"]) as two:
        with pytest.raises(ValueError, match="need the same weights"):
            await asyncio.to_thread(served, plan(one, two))


async def test_interruption_ends_the_load_and_reports():
    async with serving() as server:
        (engine,) = engines_of(server)
        inner, called, loop = engine.run, asyncio.Event(), asyncio.get_running_loop()

        def run(*arguments):
            loop.call_soon_threadsafe(called.set)
            return inner(*arguments)

        process = processes.start(
            *("resnet50", "bench", "--server", server.addresses[0], "--json"),
            *("--duration-s", 600, "--warm-up-s", 0),
            environment=ENVIRONMENT,
        )
        engine.run = run
        await called.wait()
        process.send_signal(signal.SIGINT)
        out, complaints = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 130, complaints
    (run,) = json.loads(out)["runs"]
    assert run["interrupted"]
    assert run["latency_ms"]["count"] == run["calls"] > 0
    assert run["duration_s"] < 60


def plan(*servers, **options) -> Plan:
    addresses = tuple(server.addresses[0] for server in servers)
    defaults = {"load": Load(concurrency=4), "warm_up_s": 0.0, "raw": True, "generated": 2}
    return Plan(servers=addresses, **defaults | options)


@pytest.mark.parametrize("shape", [{}, {"shape": "stream", "streams": 4}])
async def test_load_is_spread_over_the_servers(shape):
    async with serving() as one, serving() as two:
        computed = counting(one), counting(two)
        before = [count[0] for count in computed]
        work = plan(one, two, requests=40, channels=2, **shape)
        run = await measuring(work, images_of(work, (232, 232)))
    assert run.answered == 40
    assert [count[0] - old for count, old in zip(computed, before, strict=True)] == [20, 20]


async def test_function_measures_without_a_command_line():
    async with serving() as server:
        work = plan(server, requests=20)
        run = await asyncio.to_thread(measure, work, images_of(work, (232, 232)))
        again = await asyncio.to_thread(measure, work, images_of(work, (232, 232)))
    assert (run.answered, again.answered) == (20, 20)


@pytest.mark.parametrize("load", [Load(concurrency=2), Load(rate_per_s=50.0)], ids=str)
async def test_cancelled_measurement_leaves_no_task(load):
    async with serving() as server:
        computed = counting(server)
        work = plan(server, load=load, duration_s=600.0)
        measured = asyncio.create_task(measuring(work, images_of(work, (232, 232))))
        await until(lambda: computed[0] > 5)
        measured.cancel()
        with pytest.raises(asyncio.CancelledError):
            await measured
        await until(lambda: not any("bench" in task.get_name() for task in asyncio.all_tasks()))


async def test_calls_fail_by_themselves_and_are_not_repeated():
    async with serving() as server:
        (engine,) = engines_of(server)
        calls = 0

        def broken(*arguments):
            nonlocal calls
            calls += 1
            raise RuntimeError("no")

        engine.run = broken
        work = plan(server, load=Load(concurrency=1), requests=3)
        run = await measuring(work, images_of(work, (232, 232)))
    assert (run.errors, run.answered, calls) == (
        {"INTERNAL": 3},
        0,
        6,
    )  # the server retries each batch once


@pytest.mark.parametrize("shape", ["unary", "stream"])
async def test_a_server_that_comes_back_is_found_again(shape):
    loop = asyncio.get_running_loop()
    async with serving() as server:
        work = plan(server, shape=shape)
        stack = calls_of(work, images_of(work, (232, 232)))
        call = await stack.__aenter__()
        assert (await call(0, loop.time() + 10)).code == OK
    assert (await call(1, loop.time() + 10)).code == "UNAVAILABLE"
    async with serving(listen=list(work.servers)):
        outcome = await until_result(
            lambda: call(2, loop.time() + 10), lambda outcome: outcome.code != "UNAVAILABLE"
        )
        assert outcome.code == OK
        await stack.__aexit__(None, None, None)


async def test_frames_without_an_answer_fail_at_their_deadline():
    async with serving(engine="timed", timed_alpha_ms=2000) as server:
        work = plan(server, shape="stream")
        async with calls_of(work, images_of(work, (232, 232))) as call:
            deadline = asyncio.get_running_loop().time() + 0.2
            outcomes = await asyncio.gather(*(call(number, deadline) for number in range(5)))
    assert {outcome.code for outcome in outcomes} == {"DEADLINE_EXCEEDED"}


async def test_backlog_of_an_ordered_stream_shows_in_its_latencies():
    """All frames are due while the engine holds the first: they waited from then on."""
    loop = asyncio.get_running_loop()
    async with serving(max_batch_size=1) as server:
        opened = gate(server)
        work = plan(server, shape="stream", load=Load(fps=1000.0), requests=40)
        measured = asyncio.create_task(measuring(work, images_of(work, (232, 232))))
        await until(lambda: server.snapshot().requests)
        due = loop.time() + 0.04
        await until(lambda: loop.time() > due + 0.1)
        held_ms = (loop.time() - due) * 1e3
        opened.set()
        run = await measured
    assert run.answered == run.calls == 40
    assert run.latency_ms.p50 >= held_ms
    assert run.stages_ms["outside"].p50 >= held_ms  # held back before the server


async def test_frames_of_latest_streams_are_dropped_and_counted():
    async with serving(engine="timed", timed_alpha_ms=100) as server:
        work = plan(
            *(server,), shape="stream", delivery="latest", load=Load(fps=100.0), duration_s=0.8
        )
        run = await measuring(work, images_of(work, (232, 232)))
    assert run.dropped > 0
    assert run.dropped + run.answered == run.calls
    assert run.good_share < 1
