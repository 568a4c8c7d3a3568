"""The objects of deploy/kubernetes, and the traffic between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .svg import Picture

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"


def _object(file: str) -> dict[str, Any]:
    found: dict[str, Any] = next(yaml.safe_load_all((FOLDER / file).read_text(encoding="utf-8")))
    return found


def draw() -> str:
    """Return the picture; ports, labels and numbers are those of the manifests."""
    service = _object("service.yaml")
    scaler = _object("horizontal-pod-autoscaler.yaml")["spec"]
    metadata = _object("deployment.yaml")["spec"]["template"]["metadata"]
    caller = _object("network-policy.yaml")["spec"]["ingress"][0]["from"][0]["podSelector"]
    port = service["spec"]["ports"][0]["port"]
    scrape = metadata["annotations"]["prometheus.io/port"]
    metric = scaler["metrics"][0]["pods"]["metric"]["name"]
    label = next(iter(caller["matchLabels"]))
    name = f"{service['metadata']['name']}.{_object('namespace.yaml')['metadata']['name']}"

    picture = Picture(
        640, 470, "Clients call the pods of a headless Service; an autoscaler adds pods"
    )
    picture.box(
        12,
        12,
        190,
        96,
        f"Application pods\nSDK, balances calls\nlabel {label}",
        tone="grey",
        bold=True,
    )
    picture.box(
        372,
        12,
        256,
        96,
        f"Headless Service {service['metadata']['name']}\n"
        f"{name}.svc.cluster.local\naddresses of all ready pods",
        tone="violet",
        bold=True,
    )
    picture.line([(202, 44), (372, 44)], arrow=True, dashed=True)
    picture.text(287, 38, "resolves the name", size=12, anchor="middle", tone="muted")
    picture.line([(372, 76), (202, 76)], arrow=True, dashed=True)
    picture.text(287, 92, "pod addresses", size=12, anchor="middle", tone="muted")
    low, high = scaler["minReplicas"], scaler["maxReplicas"]
    picture.box(12, 166, 616, 130, tone="blue", dashed=True)
    picture.text(
        28,
        286,
        f"Deployment resnet50-server, {low} to {high} pods, behind a network policy",
        bold=True,
    )
    for number in range(3):
        picture.box(
            28 + number * 200,
            178,
            184,
            88,
            f"Server pod\ngRPC {port}\nmetrics {scrape}"
            if number < 2
            else "Server pod\nadded under load",
            tone="blue" if number < 2 else "grey",
            dashed=number == 2,
            bold=True,
        )
    for x in (100, 300):
        picture.line(
            [(107, 108), (107, 132), (x, 132), (x, 178)] if x > 107 else [(100, 108), (100, 178)],
            arrow=True,
            tone="blue",
            width=2,
        )
    picture.text(316, 136, "gRPC, straight to each pod: no proxy between", size=12, tone="blue")
    picture.box(
        12, 348, 190, 74, "Job fetch-weights\nwrites volume weights\nonce", tone="orange", bold=True
    )
    picture.line([(70, 348), (70, 296)], arrow=True, tone="orange")
    picture.text(80, 326, "mounted, read-only", size=12, tone="orange")
    picture.box(
        226,
        348,
        190,
        74,
        f"Prometheus\nscrapes {scrape}\nadapter for the metric",
        tone="green",
        bold=True,
    )
    picture.line([(321, 348), (321, 296)], arrow=True, tone="green")
    picture.text(331, 326, "scrapes", size=12, tone="green")
    picture.box(
        440, 348, 188, 74, "Autoscaler\noldest image in queue\n> 0.1 s", tone="violet", bold=True
    )
    picture.line([(416, 385), (440, 385)], arrow=True, tone="green")
    picture.line([(534, 348), (534, 296)], arrow=True, tone="violet")
    picture.text(544, 326, "scales", size=12, tone="violet")
    picture.text(12, 446, f"Metric of the autoscaler: {metric}", size=12, tone="muted")
    picture.text(
        12,
        463,
        "Drawn from deploy/kubernetes; probes, service account and disruption budget are left out.",
        size=12,
        tone="muted",
    )
    return picture.svg()
