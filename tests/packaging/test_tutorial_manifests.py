"""The overlay of docs/tutorials/kubernetes.md is valid for Kubernetes and for the server."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.deployments import Dockerfile, manifests, settings_of, variables
from tests.support.tutorials import ROOT, blocks

FILES = {
    block.title: block.text
    for block in blocks(ROOT / "docs" / "tutorials" / "kubernetes.md")
    if block.title is not None
}
OVERLAY = yaml.safe_load(FILES["kubernetes/kustomization.yaml"])
VERSIONS = ("1.30", kubernetes_validate.latest_version())
# The key by which Kubernetes merges a list: the field of an element that is its identity.
MERGE_KEYS = {"volumeMounts": "mountPath"}
DEFAULT_KEY = "name"


def merged(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return an object with a strategic merge patch, as Kustomize applies it."""
    new = copy.deepcopy(old)
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(old.get(name), dict):
            new[name] = merged(old[name], value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            new[name] = merged_list(old[name], value, MERGE_KEYS.get(name, DEFAULT_KEY))
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


def rendered() -> dict[str, dict[str, Any]]:
    """Return the objects of the overlay by kind."""
    found = {kind: one for kind, one in manifests().items() if kind != "Kustomization"}
    for entry in OVERLAY["patches"]:
        text = entry["patch"] if "patch" in entry else FILES[f"kubernetes/{entry['path']}"]
        patch = yaml.safe_load(text)
        target = found[patch["kind"]]
        assert patch["apiVersion"] == target["apiVersion"]
        assert patch["metadata"]["name"] == target["metadata"]["name"]
        if patch.pop("$patch", None) == "delete":
            del found[patch["kind"]]
        else:
            found[patch["kind"]] = merged(target, patch)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", sorted(rendered()))
def test_overlay_is_valid_for_kubernetes(kind, version):
    kubernetes_validate.validate(rendered()[kind], version, strict=True)


def test_overlay_serves_the_variant_of_its_image(monkeypatch):
    (server,) = rendered()["Deployment"]["spec"]["template"]["spec"]["containers"]
    told = Dockerfile().environment | variables(server)
    settings = settings_of(server["args"][1:], told, monkeypatch)
    (variant,) = settings.variants
    copied = FILES["kubernetes/Dockerfile"].splitlines()[1].split()
    assert copied[0] == "COPY"
    assert variant == f"patterns={copied[2]}"
    assert settings.max_connection_age_s > 0


def test_overlay_replaces_the_image_that_the_manifests_name():
    (image,) = OVERLAY["images"]
    (server,) = rendered()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert image["name"] == server["image"]
    assert (
        f"{image['newName']}:{image['newTag']}"
        in (ROOT / "docs" / "tutorials" / "kubernetes.md").read_text()
    )


def test_overlay_mounts_only_volumes_that_it_has():
    pod = rendered()["Deployment"]["spec"]["template"]["spec"]
    mounted = {one["name"] for one in pod["containers"][0]["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["volumes"]} == {"cache", "tmp"}
