"""`resnet50 top` reads what a real server exports, name by name."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from resnet50_cli.top.poller import Poller, poll_all
from resnet50_cli.top.snapshot import Snapshot
from resnet50_cli.top.variant_status import VariantStatusPoller
from resnet50_cli.top.view import View
from resnet50_client import (
    AsyncClient,
    InvalidImageError,
    OverloadedError,
    VariantChangeError,
)
from resnet50_client.admin import AdminClient, AsyncAdminClient
from resnet50_metrics.scrape import Endpoint, fetch
from tests.support.administering import ADMIN, administered, builds_paused, describe
from tests.support.pictures import encode, photo_like
from tests.support.serving import DECODING, serving, until_result

JPEG = encode(photo_like(64, 48), "JPEG")


async def poll(poller: Poller, statuses: VariantStatusPoller | None = None) -> Snapshot:
    await asyncio.to_thread(poll_all, [poller])
    return Snapshot.of([poller], statuses or VariantStatusPoller({}), 2.0)


async def wait_for_lag(poller: Poller, above: float) -> float:
    """Wait until the event loop's lag has been measured oftener; return how often."""
    count = above
    while count <= above:
        found = await asyncio.to_thread(fetch, poller.endpoint, 30.0)
        count = sum(found.series["resnet50_event_loop_lag_seconds_count"].values())
    return count


def unknown(value: object, path: str = "") -> Iterator[str]:
    """Return where a metrics has nothing to show."""
    if value is None or value in ((), {}):
        yield path
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from unknown(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from unknown(one, f"{path}.{key}")
    elif isinstance(value, tuple):
        for one in value:
            yield from unknown(one, path)


async def test_every_figure_is_there_and_says_what_was_done():
    async with (
        serving(**DECODING, metrics_listen="127.0.0.1:0", max_rate_per_caller=12.0) as server,
        AsyncClient(server.addresses[0]) as client,
    ):
        poller = Poller(Endpoint.of(server.metrics_url), 30.0, 60.0)
        await client.classify(JPEG)
        measured = await wait_for_lag(poller, -1.0)
        await poll(poller)
        await asyncio.gather(*(client.classify(JPEG) for _ in range(10)))
        with pytest.raises(InvalidImageError):
            await client.classify(b"no image")
        ended = await asyncio.gather(
            *(client.classify(JPEG) for _ in range(100)), return_exceptions=True
        )
        assert any(isinstance(one, OverloadedError) for one in ended)
        # Once may have been before the first poll.
        await wait_for_lag(poller, measured + 1)
        seen = (await poll(poller)).total
        assert list(unknown(seen)) == []
    assert seen.ready is True
    (variant,) = seen.variants
    assert (variant.name, variant.default, variant.loaded) == ("IMAGENET1K_V2", True, True)
    assert variant.engines == ("timed cpu fp32",)
    answered = seen.images_per_s
    assert answered > 0
    assert answered == pytest.approx(variant.images_per_s) == pytest.approx(seen.requests_per_s)
    (classify,) = [one for one in seen.methods if one.name == "Classify"]
    assert classify.per_s["OK"] == pytest.approx(answered)
    assert sum(seen.undecodable_per_s.values()) == classify.per_s["INVALID_ARGUMENT"] > 0
    refused = {name: one for name, one in seen.refused_per_s.items() if one}
    assert refused == {"max_rate_per_caller": classify.per_s["RESOURCE_EXHAUSTED"]}
    assert seen.failed_per_s == pytest.approx(
        classify.per_s["INVALID_ARGUMENT"] + classify.per_s["RESOURCE_EXHAUSTED"]
    )
    assert 1.0 <= variant.batch_mean <= 10.0


async def test_variants_that_come_and_go_are_shown_as_they_are(tmp_path: Path, monkeypatch):
    folder = tmp_path / "variants"
    describe(folder / "digits")
    async with (
        administered(folder, metrics_listen="127.0.0.1:0") as server,
        AsyncAdminClient(server.addresses[0], token=ADMIN) as admin,
    ):
        poller = Poller(Endpoint.of(server.metrics_url), 30.0, 60.0)

        async def shown() -> list[str]:
            """Return the lines that name digits: its row in the table of variants comes first."""
            with AdminClient(server.addresses[0], token=ADMIN) as client:
                statuses = VariantStatusPoller({server.addresses[0]: client})
                await asyncio.to_thread(statuses.poll)
            view, written = View(), io.StringIO()
            view.show(await poll(poller, statuses))
            Console(file=written, width=100).print(view)
            return [line for line in written.getvalue().splitlines() if "digits" in line]

        async def shown_while_it_loads(replace: bool) -> str:
            with builds_paused(monkeypatch) as opened:
                loading = asyncio.create_task(admin.load_variant("digits", replace=replace))
                await until_result(
                    admin.list_variants, lambda variants: any(one.loading for one in variants)
                )
                seen = await shown()
                opened.set()
                await loading
            return seen[0]

        assert " LOADING " in await shown_while_it_loads(replace=False)
        assert " UNTRAINED " in (await shown())[0]
        assert " RELOADING " in await shown_while_it_loads(replace=True)
        await admin.unload_variant("digits")
        assert await shown() == []
        describe(folder / "digits", categories=("a", " "))
        with pytest.raises(VariantChangeError):
            await admin.load_variant("digits")
        seen = await shown()
        assert " FAILED " in seen[0]
        assert seen[-1].startswith("digits: the last load failed: ")
