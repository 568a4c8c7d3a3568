"""The Helm chart beside Kustomize: same defaults, and an option is a component."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.support.helm import HELM_LABELS, kinds, of_kind, pod_of, render
from tests.support.helm_options import OPTIONS, TLS
from tests.support.kustomize import apply_component, base


def plain(manifest: Any) -> Any:
    """Return an object without the labels of Helm, lists of named elements by their names."""
    if isinstance(manifest, dict):
        return {
            key: plain(value)
            for key, value in manifest.items()
            if key not in HELM_LABELS and value != {}
        }
    if isinstance(manifest, list) and manifest and isinstance(manifest[0], dict):
        if "name" in manifest[0]:
            return {one["name"]: plain(one) for one in manifest}
        return [plain(one) for one in manifest]
    return manifest


@pytest.mark.parametrize(
    "kind",
    [
        *("Deployment", "Service", "ServiceAccount", "NetworkPolicy"),
        *("PodDisruptionBudget", "HorizontalPodAutoscaler"),
    ],
)
def test_default_object_is_that_of_kustomize(kind):
    expected, found = copy.deepcopy(base()[kind]), of_kind(render(), kind)
    # Kustomize sets the tag, Helm the policy; Helm labels every object.
    if kind == "Deployment":
        for manifest in (expected, found):
            (server,) = manifest["spec"]["template"]["spec"]["containers"]
            server.pop("imagePullPolicy", None)
            server["image"] = server["image"].partition(":")[0]
        (volume, *_) = found["spec"]["template"]["spec"]["volumes"]
        volume["persistentVolumeClaim"]["claimName"] = "weights"
    for manifest in (expected, found):
        manifest["metadata"].pop("labels", None)
    assert plain(found) == plain(expected)


def test_default_job_is_that_of_kustomize():
    expected, found = copy.deepcopy(base()["Job"]), of_kind(render(), "Job")
    for manifest in (expected, found):
        (fetch,) = manifest["spec"]["template"]["spec"]["containers"]
        for key in ("name", "image", "imagePullPolicy"):
            fetch.pop(key, None)
        (volume, *_) = manifest["spec"]["template"]["spec"]["volumes"]
        assert volume.pop("persistentVolumeClaim")["claimName"].endswith("weights")
    assert plain(found["spec"]) == plain(expected["spec"])


COMPONENTS = {
    "tls": TLS,
    "admin": OPTIONS["admin"],
    "variants-file": OPTIONS["variants file"],
    "weights-init": OPTIONS["init container"],
    "weights-image": {
        "weights": {
            "source": "imageVolume",
            "imageVolume": {"reference": "registry.example.com/resnet50-weights:1"},
        }
    },
}


@pytest.mark.parametrize("component", COMPONENTS)
def test_option_is_the_component_of_kustomize(component):
    objects, rendered = base(), render(COMPONENTS[component])
    apply_component(objects, component)
    pods = (objects["Deployment"]["spec"]["template"]["spec"], pod_of(rendered))
    for pod in pods:
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            for key in ("image", "imagePullPolicy"):
                container.pop(key, None)
        for volume in pod["volumes"]:  # of the weights and of the file: prefixed by the release
            volume.get("persistentVolumeClaim", {}).pop("claimName", None)
    assert plain(pods[1]) == plain(pods[0])
    assert ("Job" in objects) == ("Job" in kinds(rendered))
    policies = objects["NetworkPolicy"], of_kind(rendered, "NetworkPolicy")
    assert plain(policies[1]["spec"]) == plain(policies[0]["spec"])
