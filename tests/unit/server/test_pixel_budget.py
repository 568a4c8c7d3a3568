"""Decoding is bounded in pixels, however many threads decode."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from resnet50_server.images.pixel_budget import (
    SMALL_BUDGET_PIXELS,
    SMALL_PIXELS,
    BudgetFull,
    PixelBudget,
)

LARGE = 10 * SMALL_PIXELS


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_large_images_wait_in_order_and_a_small_one_does_not():
    budget = PixelBudget(2 * LARGE)
    order: list[int] = []

    async def wait(number: int, pixels: int) -> None:
        grant = await budget.wait(pixels)
        order.append(number)
        grant.release()

    with contextlib.ExitStack() as decoding:
        decoding.enter_context(budget.reserve(LARGE))
        decoding.enter_context(budget.reserve(LARGE))
        with pytest.raises(BudgetFull) as full, budget.reserve(LARGE):
            pass
        assert full.value.pixels == LARGE
        waiting = [
            asyncio.create_task(wait(number, pixels))
            for number, pixels in enumerate((2 * LARGE, LARGE // 2, LARGE))
        ]
        await settle()
        with budget.reserve(SMALL_PIXELS):
            pass
        assert order == []
    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert order == [0, 1, 2]
    with budget.reserve(2 * LARGE):
        pass


async def test_image_does_not_overtake_waiting_ones():
    budget = PixelBudget(LARGE)
    with budget.reserve(LARGE // 2):
        waiting = asyncio.create_task(budget.wait(LARGE))
        await settle()
        with pytest.raises(BudgetFull), budget.reserve(LARGE // 4):
            pass
    (await asyncio.wait_for(waiting, 60)).release()


async def test_image_larger_than_the_budget_is_decoded_alone():
    budget = PixelBudget(LARGE)
    with budget.reserve(3 * LARGE), pytest.raises(BudgetFull), budget.reserve(LARGE):
        pass


def test_small_images_have_a_bound_too():
    budget = PixelBudget(LARGE)
    with contextlib.ExitStack() as decoding:
        for _ in range(SMALL_BUDGET_PIXELS // SMALL_PIXELS):
            decoding.enter_context(budget.reserve(SMALL_PIXELS))
        with pytest.raises(BudgetFull), budget.reserve(1):
            pass


@pytest.mark.parametrize("when", ["waiting", "admitted", "told"])
async def test_cancelled_image_releases_its_pixels(when):
    budget = PixelBudget(LARGE)
    holding = contextlib.ExitStack()
    holding.enter_context(budget.reserve(LARGE))
    waiting = asyncio.create_task(budget.wait(LARGE))
    await settle()
    if when == "waiting":
        waiting.cancel()
        await settle()
    holding.close()
    if when == "told":
        await asyncio.sleep(0)  # the future has its result, the task has not run
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        (await waiting).release()
    with budget.reserve(LARGE):
        pass


async def test_pixel_grant_is_used_or_released_once():
    budget = PixelBudget(LARGE)
    grant = await budget.wait(LARGE)
    with grant.reserve(LARGE):
        grant.release()  # the caller has left, and the thread decodes on
        with pytest.raises(BudgetFull), budget.reserve(LARGE):
            pass
    grant = await budget.wait(LARGE)
    grant.release()
    with pytest.raises(BudgetFull), grant.reserve(LARGE):
        pass
    with budget.reserve(LARGE):
        pass
