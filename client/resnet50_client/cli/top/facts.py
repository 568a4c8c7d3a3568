"""What servers say of their variants, beside what they export: state, training, accuracy."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...client import Client
from ...errors import Resnet50Error
from ...results import Variant

EVERY_S = 5.0


@dataclass(frozen=True)
class Fact:
    """What is known of a variant from the API; of several servers, the one that is worst off.

    Attributes:
        state: "loading", "ready", "unhealthy", "draining" or "failed".
        trained: False for weights drawn at random.
        acc_at_1: Published accuracy in percent; None if there is none.
        loading: What goes on with weights that are to take its place, or that it is to have:
            "opening" and so on; "" if nothing does.
        last_failure: Why the last load failed; "" if it did not.
        problem: Why it is out of service; "" if it is not.
    """

    state: str
    trained: bool
    acc_at_1: float | None
    loading: str = ""
    last_failure: str = ""
    problem: str = ""


# From good to bad.
_STATES = ("ready", "draining", "loading", "unhealthy", "failed")


class Facts:
    """Asks servers for their variants now and then, in a thread; silence is no fault here.

    Args:
        clients: One for each server, by its address.
    """

    def __init__(self, clients: Mapping[str, Client]) -> None:
        self._clients = clients
        self._known: dict[str, Fact] = {}
        self._failures: dict[str, str] = {}
        self._asked = threading.Event()

    def start(self) -> None:
        """Ask from now on; ends with the process."""
        if self._clients:
            threading.Thread(target=self._run, name="ask for variants", daemon=True).start()
        else:
            self._asked.set()

    def wait(self) -> None:
        """Wait until all servers have been asked once, for as long as the clients wait."""
        self._asked.wait()

    def known(self) -> dict[str, Fact]:
        """Return what was said last, by variant; nothing of servers that do not answer."""
        return self._known

    def failures(self) -> dict[str, str]:
        """Return why servers could not be asked, by address; a server's own refusals are none."""
        return self._failures

    def ask(self) -> None:
        """Ask all servers once; blocks for as long as the clients wait."""
        found: dict[str, list[Variant]] = {}
        failures: dict[str, str] = {}
        for address, client in self._clients.items():
            try:
                held = client.variants()
            except Resnet50Error:
                continue  # what the metrics say is shown all the same
            except Exception as error:  # a token file that is gone, or a fault of this program
                failures[address] = f"{type(error).__name__}: {error}"
                continue
            answering: dict[str, Variant] = {}
            for one in held:
                answering.setdefault(one.name, one)  # a second one of that name drains
            for one in answering.values():
                found.setdefault(one.name, []).append(one)
        self._known = {name: _worst(those) for name, those in found.items()}
        self._failures = failures

    def _run(self) -> None:
        while True:
            self.ask()
            self._asked.set()
            time.sleep(EVERY_S)


def _worst(those: Sequence[Variant]) -> Fact:
    known = [one for one in those if one.state in _STATES]
    one = max(known or those, key=lambda one: _STATES.index(one.state) if known else 0)
    accuracy = one.published_accuracy
    return Fact(
        one.state,
        one.trained,
        accuracy.acc_at_1 if accuracy else None,
        next((each.loading.stage for each in those if each.loading), ""),
        next((each.last_failure for each in those if each.last_failure), ""),
        next((each.problem for each in those if each.problem), ""),
    )
