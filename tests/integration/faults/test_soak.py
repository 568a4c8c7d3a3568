"""The trials of `make soak` and `make kills`, as short as they can be."""

from __future__ import annotations

from benchmarks import kills, soak
from benchmarks.ledger import LOST, REFUSED, RIGHT, WRONG

# Needs neither graphs nor a choice, which would take most of the time.
ENGINE = ["--engine", "torch", "--max-batch-size", "4"]


async def test_answers_are_right_while_variants_change(tmp_path):
    outcome = await soak.trial(tmp_path, seconds=12, swap_every_s=3, flags=ENGINE, few=4)
    ledger = outcome.ledger
    assert ledger.faults == []
    assert (ledger.count(WRONG), ledger.count(LOST)) == (0, 0)
    # And it was a trial.
    assert {"replace", "set default", "load"} <= outcome.changes.keys()
    assert {"A", "B", "C"} <= ledger.weights.keys()
    assert {"INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"} <= ledger.refusals.keys()
    assert len(ledger.shapes()) == 2 * len(soak.SHAPES)
    assert ledger.count(REFUSED, "wrong call, asyncio") > 0


async def test_servers_killed_in_turn_cost_no_call_and_no_frame(tmp_path):
    outcome = await kills.trial(tmp_path, kills=2, every_s=2, flags=ENGINE, few=4)
    ledger = outcome.ledger
    assert ledger.faults == []
    assert len(outcome.back_s) == 2
    assert all(ledger.count(RIGHT, shape) > 0 for shape in ledger.shapes())
    assert len(ledger.shapes()) == 2 * len(kills.SHAPES)
