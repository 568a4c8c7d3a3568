"""State, accuracy and failures of variants, polled over gRPC: metrics do not include them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resnet50_client._admin import AdminClient
from resnet50_client.errors import Resnet50Error
from resnet50_client.types import Variant

EVERY_S = 5.0


@dataclass(frozen=True)
class VariantStatus:
    """Status of a variant; of several servers, the worst one's.

    Attributes:
        state: "loading", "ready", "unhealthy", "draining" or "failed".
        trained: False for random weights.
        acc_at_1: Published top-1 accuracy in percent; None if unknown.
        loading: Stage of a load in progress; "" if none.
        last_failure: Error of the last load; "" if it succeeded.
        problem: Reason why it is out of service; "" if it is in service.
    """

    state: str
    trained: bool
    acc_at_1: float | None
    loading: str = ""
    last_failure: str = ""
    problem: str = ""


# From best to worst.
_STATES = ("ready", "draining", "loading", "unhealthy", "failed")


class VariantStatusPoller:
    """Polls servers for their variants in a thread; ignores unreachable servers.

    Args:
        clients: Clients by server address.
    """

    def __init__(self, clients: Mapping[str, AdminClient]) -> None:
        self._clients = clients
        self._known: dict[str, VariantStatus] = {}
        self._failures: dict[str, str] = {}
        self._polled = threading.Event()

    def start(self) -> None:
        """Start polling; the thread ends with the process."""
        if self._clients:
            threading.Thread(target=self._run, name="poll variants", daemon=True).start()
        else:
            self._polled.set()

    def wait(self) -> None:
        """Wait until all servers were polled once; bounded by the clients' timeouts."""
        self._polled.wait()

    def latest(self) -> dict[str, VariantStatus]:
        """Return the latest status by variant, without unreachable servers."""
        return self._known

    def errors(self) -> dict[str, str]:
        """Return unexpected errors by address; errors that servers return are not included."""
        return self._failures

    def poll(self) -> None:
        """Poll all servers once; blocks up to the clients' timeouts."""
        found: dict[str, list[Variant]] = {}
        failures: dict[str, str] = {}
        for address, client in self._clients.items():
            try:
                listed = client.list_variants()
            except Resnet50Error:
                continue  # the metrics are shown regardless
            except Exception as error:  # a missing token file, or a bug
                failures[address] = f"{type(error).__name__}: {error}"
                continue
            serving: dict[str, Variant] = {}
            for variant in listed:
                serving.setdefault(variant.name, variant)  # a second one of a name is draining
            for variant in serving.values():
                found.setdefault(variant.name, []).append(variant)
        self._known = {name: _worst(variants) for name, variants in found.items()}
        self._failures = failures

    def _run(self) -> None:
        while True:
            self.poll()
            self._polled.set()
            time.sleep(EVERY_S)


def _worst(variants: Sequence[Variant]) -> VariantStatus:
    known = [variant for variant in variants if variant.state in _STATES]
    worst = max(known, key=lambda variant: _STATES.index(variant.state)) if known else variants[0]
    accuracy = worst.published_accuracy
    return VariantStatus(
        worst.state,
        worst.trained,
        accuracy.acc_at_1 if accuracy else None,
        next((each.loading.stage for each in variants if each.loading), ""),
        next((each.last_failure for each in variants if each.last_failure), ""),
        next((each.problem for each in variants if each.problem), ""),
    )
