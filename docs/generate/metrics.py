"""The metrics of a server and of a gateway: names, labels, types and help texts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client.core import Metric

from resnet50_gateway import metrics as gateway
from resnet50_server.context import RequestContext
from resnet50_server.errors import InvalidImage, Unauthenticated
from resnet50_server.events import ImageEvent
from resnet50_server.telemetry.gauges import GaugeCollector
from resnet50_server.telemetry.metrics import Metrics
from resnet50_server.telemetry.snapshot import (
    CacheSnapshot,
    ServerSnapshot,
    SplitSnapshot,
    VariantsFileSnapshot,
    VariantSnapshot,
)

from .markdown import code, codes, escaped, table

_VARIANT, _CANDIDATE, _METHOD = "variant", "candidate", "Classify"
# Labels of histograms' samples that are no labels of the family.
_OF_BUCKETS = {"le"}


def section(program: str = "server") -> str:
    """Return a table of all families.

    Args:
        program: "server" or "gateway".
    """
    families = asyncio.run(_of_server()) if program == "server" else _of_gateway()
    rows = sorted(_row(family) for family in families if family.name.startswith("resnet50_"))
    return table(("name", "labels", "type", "meaning"), rows)


def _of_gateway() -> list[Metric]:
    """Return the families of a gateway that counted a bit."""
    metrics = gateway.Metrics(version="")
    metrics.request_started()
    metrics.request_ended(gateway.OTHER, 200, 0.0, 1, 1)
    metrics.stream_opened()
    metrics.stream_ended(gateway.OTHER, None, 0, 0)
    metrics.call_ended("", "OK")
    return list(metrics.registry.collect())


async def _of_server() -> list[Metric]:
    """Return the families of a server that counted a bit."""
    metrics = Metrics({_METHOD: False}, {_METHOD}, version="")
    metrics.init_series([_VARIANT])
    # Families show their labels once they have counted.
    call = RequestContext(_METHOD, "", (), variant=_VARIANT)
    metrics.call_ended(call, "OK", None)
    metrics.call_ended(call, "", InvalidImage("", ""))
    metrics.call_ended(call, "", Unauthenticated("", ""))
    metrics.image_answered(ImageEvent(call, _VARIANT, 0.0, 0.0, 0.0, 0.0, 0.0, 1))
    metrics.registry.register(GaugeCollector(_snapshot))
    # Gauges wait for the event loop.
    return await asyncio.to_thread(lambda: list(metrics.registry.collect()))


def _row(family: Metric) -> tuple[str, str, str, str]:
    # The family of the version is a gauge in Prometheus' text format.
    name, kind = {
        "counter": (f"{family.name}_total", "counter"),
        "info": (f"{family.name}_info", "gauge"),
    }.get(family.type, (family.name, family.type))
    labels = sorted(set(_labels(family)) - _OF_BUCKETS)
    return code(name), codes(labels), kind, escaped(family.documentation)


def _labels(family: Metric) -> Iterator[str]:
    for sample in family.samples:
        yield from sample.labels


def _snapshot() -> ServerSnapshot:
    """Return a state with one of everything."""
    return ServerSnapshot(
        ready=True,
        draining=False,
        receiving=0,
        unsent_bytes=0,
        requests=0,
        bytes=0,
        streams=0,
        decode_waiting=0,
        decode_busy=0,
        decode_stuck=0,
        batches={"cpu": 0},
        busy_s={"cpu": 0.0},
        cancelled={"queue": 0},
        listener_errors={"Metrics": 0},
        variants=[
            VariantSnapshot(
                name=_VARIANT,
                digest="",
                engine="",
                device="cpu",
                precision="",
                default=True,
                healthy=True,
                requests=0,
                uploads=0,
                pending=0,
                oldest_wait_s=0.0,
                batch_size_limit=0,
                latency_s=(0.0, 0.0),
            )
        ],
        splits=[
            SplitSnapshot(
                variant=_VARIANT,
                candidate=_CANDIDATE,
                answers={(_VARIANT, "answered"): 0},
                shadows={"compared": 0},
                agreed=0,
                cosines=0.0,
                ended=False,
            )
        ],
        cache=CacheSnapshot({(_VARIANT, "hit"): 0}, 0, 0, 0),
        variants_file=VariantsFileSnapshot("", 0, 0, "", []),
    )
