"""The overlay of docs/tutorials/kubernetes.md is valid for Kubernetes and for the server."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.deployments import Dockerfile, settings_of, variables
from tests.support.kustomize import apply_patch, base
from tests.support.tutorials import ROOT, blocks

FILES = {
    block.title: block.text
    for block in blocks(ROOT / "docs" / "tutorials" / "kubernetes.md")
    if block.title is not None
}
OVERLAY = yaml.safe_load(FILES["kubernetes/kustomization.yaml"])
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def rendered() -> dict[str, dict[str, Any]]:
    """Return the objects of the overlay by kind."""
    found = base()
    for entry in OVERLAY["patches"]:
        apply_patch(found, entry.get("patch") or FILES[f"kubernetes/{entry['path']}"])
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
    # Docker's own parser knows symbolic modes since 1.14 only.
    syntax, _, copy = FILES["kubernetes/Dockerfile"].splitlines()
    assert syntax == "# syntax=docker/dockerfile:1"
    copied = copy.split()
    assert copied[:2] == ["COPY", "--chmod=a+rX"]
    assert variant == f"patterns={copied[3]}"
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
