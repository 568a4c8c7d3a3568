"""The Helm chart, rendered by Helm itself, without a cluster."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import helm_python
import yaml

from .deployments import DEPLOY

CHART = DEPLOY / "helm" / "resnet50"
NAMESPACE = RELEASE = "resnet50"
# Labels that only Helm sets.
HELM_LABELS = {
    *("app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"),
    "helm.sh/chart",
}

Object = dict[str, Any]
# That in C, where PyYAML has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(values: Mapping[str, Any] | None = None, release: str = RELEASE) -> list[Object]:
    """Return the objects that an installation with these values creates.

    Raises:
        helm_python.HelmError: The schema or a template refuses the values.
    """
    texts = _rendered(json.dumps(values or {}), release)
    return [one for text in texts for one in yaml.load_all(text, _Loader) if one is not None]


@functools.cache
def _rendered(values: str, release: str) -> list[str]:
    files = chart().render(json.loads(values), name=release, namespace=NAMESPACE)
    return [text for name, text in sorted(files.items()) if name.endswith(".yaml")]


def of_kind(objects: list[Object], kind: str) -> Object:
    """Return the only object of a kind."""
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def pod_of(objects: list[Object], kind: str = "Deployment") -> Object:
    spec: Object = of_kind(objects, kind)["spec"]["template"]["spec"]
    return spec


def server_of(objects: list[Object]) -> Object:
    (container,) = pod_of(objects)["containers"]
    return dict(container)


def kinds(objects: list[Object]) -> set[str]:
    return {one["kind"] for one in objects}
