"""`resnet50 variants`: what is held, and how it is changed, on several servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from resnet50_cli.app import app
from resnet50_client import Client
from resnet50_server.server import Server
from tests.support import processes
from tests.support.administering import ADMIN, APP, administered, builds_paused, describe
from tests.support.pictures import encode, picture
from tests.support.serving import queues_of, serving, until_result


@pytest.fixture
def folder(tmp_path):
    for name in ("digits", "pets"):
        describe(tmp_path / "variants" / name)
    return tmp_path / "variants"


def environment(token: str | None) -> dict[str, str | None]:
    """Return what RESNET50_ variables are to be; None for those that are not."""
    outer = {name: None for name in os.environ if name.startswith("RESNET50_")}
    return outer | {"RESNET50_TOKEN": token, "COLUMNS": "200", "TERM": "dumb"}


async def variants(*arguments: str, servers: list[Server], token: str | None = ADMIN) -> Result:
    """Run `resnet50 variants` here, beside the servers' event loop."""
    told = (f"--server={one.addresses[0]}" for one in servers)
    return await asyncio.to_thread(
        CliRunner().invoke, app, ["variants", *arguments, *told], env=environment(token)
    )


def records(done: Result) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_each_server_is_listed_with_what_it_holds(folder):
    describe(folder / "broken", categories=("a", " "))
    async with administered(folder) as one, administered(folder) as other:
        await variants("load", "digits", servers=[one])
        await variants("load", "broken", servers=[one])
        done = await variants(servers=[one, other])
        assert done.exit_code == 0
        first, second = done.stdout.split(f"{other.addresses[0]}:\n")
        assert f"{one.addresses[0]}:\n" in first
        assert "in flight" in first
        assert ("digits" in first, "digits" in second) == (True, False)
        assert "broken: the last load failed: " in first
        assert "IMAGENET1K_V2 *" in second
        found = records(await variants("--json", servers=[one, other]))
        assert [(each["server"], each["name"], each["state"]) for each in found] == [
            (one.addresses[0], "IMAGENET1K_V2", "ready"),
            (one.addresses[0], "digits", "ready"),
            (one.addresses[0], "broken", "failed"),
            (other.addresses[0], "IMAGENET1K_V2", "ready"),
        ]


async def test_unhealthy_variant_is_shown_with_reason_and_split(folder):
    async with administered(folder, variants=["IMAGENET1K_V2", "IMAGENET1K_V1"]) as one:
        pair = ("IMAGENET1K_V2", "IMAGENET1K_V1")
        done = await variants("split", *pair, "--canary", "1", "--canary-embeddings", servers=[one])
        assert done.exit_code == 0, done.stderr
        (queue,) = [queue for queue in queues_of(one) if queue.name == "IMAGENET1K_V1"]
        queue.health.fail("as the test wants it", "nothing is to be done")
        shown = (await variants(servers=[one])).stdout
        assert "UNHEALTHY" in shown
        assert "IMAGENET1K_V1: out of service: as the test wants it\n" in shown
        found = records(await variants("--json", servers=[one]))
        assert [(each["state"], each["problem"]) for each in found] == [
            ("ready", None),
            ("unhealthy", "as the test wants it"),
        ]
        reason = "candidate IMAGENET1K_V1 is out of service: as the test wants it"
        shown = (await variants("splits", servers=[one])).stdout
        assert f"ENDED by the server: {reason}" in shown
        (report,) = records(await variants("splits", "--json", servers=[one]))
        assert (report["ended"], report["split"]["canary_embeddings"]) == (reason, True)
        refused = await variants("split", *pair, "--canary", "1", servers=[one])
        assert refused.exit_code != 0
        assert "IMAGENET1K_V1 is out of service" in refused.stderr


async def test_classify_asks_a_small_variant_for_all_categories(folder, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture()))
    async with administered(folder) as one:
        await variants("load", "digits", servers=[one])
        arguments = ("--variant", "digits", "--server", one.addresses[0], "--json")
        done = await asyncio.to_thread(
            CliRunner().invoke,
            app,
            ["classify", str(tmp_path / "a.png"), *arguments],
            env=environment(ADMIN),
        )
    assert done.exit_code == 0, done.stderr
    assert [each["label"] for each in records(done)[0]["categories"]] == ["a", "b"]


async def test_server_that_does_not_answer_hides_none_of_the_others(folder):
    async with administered(folder) as here, administered(folder) as gone:
        await gone.stop()
        done = await variants("--json", servers=[gone, here])
        assert [one["server"] for one in records(done)] == [here.addresses[0]]
        assert (done.exit_code, gone.addresses[0] in done.stderr) == (3, True)


async def test_servers_are_changed_one_after_another(folder):
    async with administered(folder) as one, administered(folder) as other:
        both = [one, other]
        loaded = await variants("load", "digits", "--json", servers=both)
        assert [each["server"] for each in records(loaded)] == [
            server.addresses[0] for server in both
        ]
        (digest,) = {each["variant"]["digest"] for each in records(loaded)}
        describe(folder / "digits", categories=("a", "b", "c"))
        replaced = await variants("load", "digits", "--replace", servers=both)
        assert replaced.stdout.count(f"replacing {digest[:12]}") == 2
        default = await variants("default", "digits", servers=both)
        assert default.stdout.count("is now the default instead of") == 2
        unloaded = await variants("unload", "IMAGENET1K_V2", servers=both)
        assert unloaded.stdout.count("is unloaded") == 2
        for done in (loaded, replaced, default, unloaded):
            assert done.exit_code == 0
        shown = await variants("show", "--json", servers=both)
        assert records(shown)[0]["categories"] == ["a", "b", "c"]


async def test_first_server_that_fails_is_the_last_that_is_asked(folder, tmp_path):
    async with (
        administered(folder) as one,
        administered(folder) as other,
        administered(folder) as last,
    ):
        await variants("load", "digits", servers=[other])
        done = await variants("load", "digits", servers=[one, other, last])
        assert done.exit_code == 1
        assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [one.addresses[0]]
        assert "served already" in done.stderr
        assert (
            f"stopped at {other.addresses[0]}; changed: {one.addresses[0]};"
            f" not attempted: {last.addresses[0]}" in done.stderr
        )
        listed = records(await variants("--json", servers=[last]))
        assert [each["name"] for each in listed] == ["IMAGENET1K_V2"]


async def test_missing_tokens_and_scopes_are_told_with_what_to_do(folder):
    async with administered(folder) as server:
        denied = await variants("load", "digits", servers=[server], token=APP)
        assert denied.exit_code == 1
        for words in ("the scope 'admin'", "--token-file", "tokens new NAME --scope admin"):
            assert words in denied.stderr
        unknown = await variants("unload", "digits", servers=[server], token=None)
        assert (unknown.exit_code, "--token-file" in unknown.stderr) == (1, True)


async def test_change_without_tokens_says_how_to_start_the_server():
    async with serving() as server:
        denied = await variants("load", "digits", servers=[server], token=None)
    assert denied.exit_code == 1
    for words in ("this server has none", "--tokens-file", "--variants-dir", "--scope admin"):
        assert words in denied.stderr


async def test_options_before_a_command_are_the_lists_and_never_lost(folder):
    done = await variants("--json", "load", "digits", servers=[])
    assert (done.exit_code, "load digits" in done.stderr) == (2, True)


@contextlib.asynccontextmanager
async def loading(server: Server, stderr: int) -> AsyncIterator[Any]:
    """Run `resnet50 variants load digits` as a process."""
    inherited = {name: one for name, one in os.environ.items() if not name.startswith("RESNET50_")}
    process = await asyncio.to_thread(
        processes.start,
        *("resnet50", "variants", "load", "digits", "--server", server.addresses[0]),
        environment=inherited | {"RESNET50_TOKEN": ADMIN, "TERM": "xterm"},
        stderr=stderr,
        text=False,
    )
    try:
        yield process
    finally:
        process.kill()
        with process:  # closes its pipes, and waits for it
            pass


async def test_loading_tells_each_stage(folder, monkeypatch):
    async with administered(folder) as server:
        with builds_paused(monkeypatch) as opened:
            async with loading(server, subprocess.PIPE) as process:
                line = await asyncio.to_thread(process.stderr.readline)
                assert b"digits: loading: building, " in line
                opened.set()
                said, _ = await asyncio.to_thread(process.communicate)
                assert (process.returncode, b"is loaded: null on cpu in fp32, in " in said) == (
                    0,
                    True,
                )


async def test_loading_is_live_on_a_terminal(folder, monkeypatch):
    terminal, theirs = pty.openpty()
    async with administered(folder) as server:
        with builds_paused(monkeypatch) as opened:
            async with loading(server, theirs) as process:
                os.close(theirs)
                seen = b""
                while b"loading: building, 1 s" not in seen:
                    seen += await asyncio.to_thread(os.read, terminal, 1024)
                opened.set()
                # The terminal is read to its end: a full one would hold the process up.
                with contextlib.suppress(OSError):
                    while await asyncio.to_thread(os.read, terminal, 1024):
                        pass
                said, _ = await asyncio.to_thread(process.communicate)
                assert (process.returncode, said.count(b"\n")) == (0, 1)
    os.close(terminal)


async def test_interrupted_load_goes_on_in_the_server(folder, monkeypatch):
    async with administered(folder) as server:
        with builds_paused(monkeypatch) as opened:
            async with loading(server, subprocess.PIPE) as process:
                await asyncio.to_thread(process.stderr.readline)
                process.send_signal(signal.SIGINT)
                _, told = await asyncio.to_thread(process.communicate, timeout=60)
                assert process.returncode == 130
                assert b"may still complete the change" in told
                assert b"Traceback" not in told
            opened.set()
        with Client(server.addresses[0], token=ADMIN) as client:
            await until_result(
                lambda: asyncio.to_thread(client.list_variants),
                lambda variants: variants[-1].state == "ready",
            )
