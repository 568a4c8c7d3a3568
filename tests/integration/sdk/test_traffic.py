"""Traffic splits through both clients and `resnet50 variants`, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal

import pytest
from typer.testing import CliRunner, Result

from resnet50_cli.app import app
from resnet50_client import (
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    VariantNotFoundError,
)
from resnet50_server.rollout.split import Split
from resnet50_server.server import Server
from tests.support import processes
from tests.support.administering import ADMIN, APP, administered
from tests.support.clients import KINDS, Caller, items
from tests.support.pictures import encode, photo_like
from tests.support.secured import fronting, unavailable
from tests.support.serving import until

PNG = encode(photo_like(32, 32))
V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
BOTH = {"variants": [V2, V1]}
KEYS = [f"user-{number}" for number in range(20)]
CANARY = next(key for key in KEYS if Split(V2, V1, 30.0).is_canary(key))
OTHER = next(key for key in KEYS if not Split(V2, V1, 30.0).is_canary(key))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "variants").mkdir()
    return tmp_path / "variants"


def compared(server: Server) -> int:
    (active,) = server.parts.traffic.splits
    return active.stats.comparison.images


# The two clients


async def test_split_is_set_shown_and_ended(kind, folder):
    async with (
        administered(folder, **BOTH) as server,
        Caller(kind, server.addresses[0], token=ADMIN) as client,
    ):
        begun = await client.set_traffic_split(
            "DEFAULT", V1, canary_percent=30.0, shadow_percent=100.0
        )
        split = begun.split
        assert (split.variant, split.candidate) == (V2, V1)
        assert (split.canary_percent, split.shadow_percent) == (30.0, 100.0)
        assert begun.comparison is None
        for key, name in ((CANARY, V1), (OTHER, V2)):
            assert (await client.classify(PNG, caller_key=key)).variant.name == name
        await until(lambda: compared(server))
        (report,) = await client.list_traffic_splits()
        assert report.variant_answers.answered == report.candidate_answers.answered == 1
        assert 0.0 < report.candidate_answers.p50_ms <= report.candidate_answers.p99_ms
        assert (report.comparison.images, report.comparison.top_1_agreement) == (1, 1.0)
        assert report.comparison.embedding_cosine == pytest.approx(1.0)
        assert {report.variant_digest, report.candidate_digest} == {
            one.digest for one in await client.list_variants()
        }
        ended = await client.delete_traffic_split(V2)
        assert ended.comparison == report.comparison
        assert await client.list_traffic_splits() == []


async def test_what_a_server_refuses_of_a_split_is_told_apart(kind, folder):
    async with (
        administered(folder, **BOTH) as server,
        Caller(kind, server.addresses[0], token=ADMIN) as client,
        Caller(kind, server.addresses[0], token=APP) as other,
    ):
        with pytest.raises(InvalidRequestError) as wrong:
            await client.set_traffic_split(V2, V1, canary_percent=0.001)
        assert wrong.value.field == "split.canary_percent"
        with pytest.raises(VariantNotFoundError, match=r"split\.candidate"):
            await client.set_traffic_split(V2, "digits", shadow_percent=1.0)
        with pytest.raises(NotFoundError, match="has no traffic split"):
            await client.delete_traffic_split(V2)
        for call in (
            other.set_traffic_split(V2, V1, shadow_percent=1.0),
            other.list_traffic_splits(),
            other.delete_traffic_split(V2),
        ):
            with pytest.raises(PermissionDeniedError):
                await call


async def test_key_of_a_call_goes_before_that_of_the_client(kind):
    async with fronting() as front:
        async with Caller(kind, front.address, caller_key="all of us") as client:
            await client.classify(PNG)
            await client.classify(PNG, caller_key="ada")
            await client.embed(PNG, caller_key="ada")
            for name in ("classify_stream", "embed_stream", "classify_many", "embed_many"):
                [one async for one in items(client, name, [PNG])]
                [one async for one in items(client, name, [PNG], caller_key="ada")]
        async with Caller(kind, front.address) as client:
            await client.classify(PNG)
            for key in ("", "k" * 129, "caméra"):
                with pytest.raises(ValueError, match=r"^caller_key: is "):
                    await client.classify(PNG, caller_key=key)
        with pytest.raises(ValueError, match=r"^caller_key: is "):
            Caller(kind, front.address, caller_key="")
        told = [one.metadata.get("x-caller-key") for one in front.seen]
    assert told == ["all of us", "ada", "ada", *["all of us", "ada"] * 4, None]


async def test_split_changes_are_not_retried_on_another_server(kind):
    async with fronting() as front, Caller(kind, front.address) as client:
        for change, arguments in (
            (client.set_traffic_split, (V2, V1)),
            (client.delete_traffic_split, (V2,)),
        ):
            front.failures = [unavailable()]
            with pytest.raises(UnavailableError):
                await change(*arguments)
        assert front.methods() == ["SetTrafficSplit", "DeleteTrafficSplit"]


# The command line


async def variants(*arguments: str, servers: list[Server]) -> Result:
    """Run `resnet50 variants` here, beside the servers' event loop."""
    told = (f"--server={one.addresses[0]}" for one in servers)
    known = {name: None for name in os.environ if name.startswith("RESNET50_")}
    environment = known | {"RESNET50_TOKEN": ADMIN, "COLUMNS": "200", "TERM": "dumb"}
    return await asyncio.to_thread(
        CliRunner().invoke, app, ["variants", *arguments, *told], env=environment
    )


async def test_split_is_set_shown_and_ended_on_each_server(folder):
    async with administered(folder, **BOTH) as one, administered(folder, **BOTH) as other:
        both = [one, other]
        done = await variants("split", V2, V1, "--canary", "30", "--shadow", "100", servers=both)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.count(f"{V1} serves 30% of the callers of {V2}") == 2
        async with Caller(KINDS[0], one.addresses[0], token=ADMIN) as client:
            await client.classify(PNG, caller_key=OTHER)
        await until(lambda: compared(one))
        shown = (await variants("splits", servers=both)).stdout
        first, second = shown.split(f"{other.addresses[0]}:")
        assert [line.split() for line in first.splitlines() if "answered" in line] == [
            ["answered", "1", "0"]
        ]
        assert "callers" in first
        assert ("70%" in first, "30%" in first) == (True, True)
        assert "1 compared, 0 skipped, 0 failed on the candidate" in first
        assert "top-1 agreement 100.00%; cosine similarity mean 1.0000, min 1.0000" in first
        assert "0 compared" in second
        told = (await variants("splits", "--json", servers=both)).stdout.splitlines()
        found = [json.loads(line) for line in told]
        assert [(each["server"], each["variant_answers"]["answered"]) for each in found] == [
            (one.addresses[0], 1),
            (other.addresses[0], 0),
        ]
        ended = await variants("unsplit", V2, servers=both)
        assert (ended.exit_code, ended.stdout.count("compared")) == (0, 2)
        none = await variants("splits", servers=both)
        assert none.stdout.count("no traffic split is set") == 2
        again = await variants("unsplit", V2, servers=both)
        assert (again.exit_code, again.stdout) == (1, "")
        assert f"stopped at {one.addresses[0]}" in again.stderr


async def test_silent_server_hides_no_splits_of_the_others(folder):
    async with administered(folder, **BOTH) as here, administered(folder) as gone:
        await gone.stop()
        await variants("split", V2, V1, "--shadow", "1", servers=[here])
        done = await variants("splits", "--json", servers=[gone, here])
        assert (done.exit_code, gone.addresses[0] in done.stderr) == (3, True)
        assert json.loads(done.stdout)["server"] == here.addresses[0]


@pytest.mark.parametrize("terminal", [False, True])
async def test_watched_splits_are_shown_until_ctrl_c(folder, terminal):
    async with (
        administered(folder, **BOTH) as server,
        Caller(KINDS[0], server.addresses[0], token=ADMIN) as client,
    ):
        await client.set_traffic_split(V2, V1, canary_percent=30.0)
        mine, theirs = pty.openpty() if terminal else os.pipe()
        inherited = {
            name: one for name, one in os.environ.items() if not name.startswith("RESNET50_")
        }
        process = await asyncio.to_thread(
            processes.start,
            *("resnet50", "variants", "splits", "--watch", "--interval-s", 0.1),
            *("--server", server.addresses[0]),
            environment=inherited | {"RESNET50_TOKEN": ADMIN, "TERM": "xterm"},
            stdout=theirs,
            text=False,
        )
        os.close(theirs)
        try:
            seen = b""
            while seen.count(b"30%") < 2:
                seen += await asyncio.to_thread(os.read, mine, 65536)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # a terminal's end
                while await asyncio.to_thread(os.read, mine, 65536):
                    pass
            _, told = await asyncio.to_thread(process.communicate)
            assert (process.returncode, told) == (0, b"")
        finally:
            process.kill()
            with process:
                pass
            os.close(mine)
