"""The manifests of KServe are valid for KServe, Kubernetes and the server."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from resnet50_server.memory_bound import memory_bound, total
from tests.support.custom_resources import schema_errors
from tests.support.deployments import DEPLOY, Dockerfile, settings_of, variables
from tests.support.kubernetes import VERSIONS, kubernetes_errors

FOLDER = DEPLOY / "kserve"
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml")}
INFERENCE_SERVICE = MANIFESTS["inference-service"]
RUNTIME = MANIFESTS["cluster-serving-runtime"]
MODEL = MANIFESTS["inference-service-oip"]
# KServe's own fields of a predictor and of a runtime, beside those of a pod.
OWN = {
    *("minReplicas", "model"),
    *("supportedModelFormats", "protocolVersions", "annotations"),
}


def pod(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the pod of a predictor or of a runtime."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "resnet50"},
        "spec": {key: value for key, value in spec.items() if key not in OWN},
    }


PODS = {"custom container": INFERENCE_SERVICE["spec"]["predictor"], "runtime": RUNTIME["spec"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_has_only_fields_that_kserve_knows(name):
    assert schema_errors(MANIFESTS[name]) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_field_that_kserve_does_not_know_is_found(name):
    manifest = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    manifest["spec"].get("predictor", manifest["spec"])["minReplica"] = 1
    assert any("minReplica" in message for message in schema_errors(manifest))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", PODS)
def test_pod_is_valid_for_kubernetes(name, version):
    assert kubernetes_errors(pod(PODS[name]), version) == []


@pytest.mark.parametrize("name", PODS)
def test_server_takes_the_settings_within_the_memory_limit(name, monkeypatch):
    (server,) = PODS[name]["containers"]
    assert server["name"] == "kserve-container"
    told = Dockerfile().environment | variables(server)
    told = {name: value.replace("{{.Name}}", "flowers") for name, value in told.items()}
    settings = settings_of(server["args"][1:], told, monkeypatch)
    assert settings.oip == (name == "runtime")
    limit = server["resources"]["limits"]["memory"]
    assert total(memory_bound(settings)) <= int(limit.removesuffix("Gi")) * 2**30
    # KServe routes the first port, and speaks HTTP/2 to it by its name.
    assert server["ports"][0]["name"] == "h2c"
    assert settings.listen[0].endswith(f":{server['ports'][0]['containerPort']}")


@pytest.mark.parametrize("name", PODS)
def test_container_mounts_the_volumes_of_its_pod(name):
    containers = [*PODS[name]["containers"], *PODS[name].get("initContainers", [])]
    mounted = {one["name"] for container in containers for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in PODS[name]["volumes"]}
    for container in containers:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_weights_of_the_init_container_are_those_of_the_server():
    predictor = INFERENCE_SERVICE["spec"]["predictor"]
    (fetch,), (server,) = predictor["initContainers"], predictor["containers"]
    told = variables(server)
    assert fetch["args"] == ["variants", "download", *told["RESNET50_VARIANTS"].split(",")]
    assert fetch["image"] == server["image"]
    assert variables(fetch)["TORCH_HOME"] == told["TORCH_HOME"]


def test_model_has_the_format_and_protocol_of_the_runtime():
    model = MODEL["spec"]["predictor"]["model"]
    formats = {one["name"] for one in RUNTIME["spec"]["supportedModelFormats"]}
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


@pytest.mark.parametrize("manifest", [INFERENCE_SERVICE, MODEL], ids=["own", "oip"])
def test_inference_service_is_a_deployment_without_settings_from_services(manifest):
    annotations = manifest["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"
    assert manifest["spec"]["predictor"]["enableServiceLinks"] is False
