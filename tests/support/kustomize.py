"""Patches of Kustomize, applied to the objects of Kubernetes as Kustomize applies them."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from .deployments import KUBERNETES, manifests

# The key by which Kubernetes merges a list: the field of an element that is its identity.
MERGE_KEYS = {"volumeMounts": "mountPath", "ports": "port"}
DEFAULT_KEY = "name"
# Lists that Kubernetes replaces as a whole.
ATOMIC = {"egress", "ingress"}


def base() -> dict[str, dict[str, Any]]:
    """Return the objects of `deploy/kubernetes` by kind."""
    return {kind: one for kind, one in manifests().items() if kind != "Kustomization"}


def apply_component(objects: dict[str, dict[str, Any]], name: str) -> None:
    """Apply the patches of a component of `deploy/kubernetes/components` to objects by kind."""
    folder = KUBERNETES / "components" / name
    for entry in yaml.safe_load((folder / "kustomization.yaml").read_text())["patches"]:
        apply_patch(objects, (folder / entry["path"]).read_text())


def apply_patch(objects: dict[str, dict[str, Any]], text: str) -> None:
    """Apply a strategic merge patch, which names its object, to objects by kind."""
    patch = yaml.safe_load(text)
    target = objects[patch["kind"]]
    assert patch["apiVersion"] == target["apiVersion"]
    assert patch["metadata"]["name"] == target["metadata"]["name"]
    if patch.pop("$patch", None) == "delete":
        del objects[patch["kind"]]
    else:
        objects[patch["kind"]] = merged(target, patch)


def merged(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return an object with a strategic merge patch."""
    new = copy.deepcopy(old)
    for name, value in patch.items():
        if value is None:
            assert name in new, f"{name}: null deletes nothing"
            del new[name]
        elif isinstance(value, dict) and isinstance(old.get(name), dict):
            new[name] = merged(old[name], value)
        elif name in ATOMIC:
            new[name] = value
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            new[name] = merged_list(old.get(name, []), value, MERGE_KEYS.get(name, DEFAULT_KEY))
        else:
            new[name] = value
    return new


def merged_list(old: list[dict], patch: list[dict], key: str) -> list[dict]:
    known = {one[key]: one for one in old}
    for one in patch:
        if one.get("$patch") == "delete":
            assert known.pop(one[key], None) is not None, f"{one} deletes nothing"
        else:
            known[one[key]] = merged(known.get(one[key], {}), one)
    return list(known.values())
