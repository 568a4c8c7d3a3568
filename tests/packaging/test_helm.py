"""The Helm chart: options are valid for Kubernetes and the server, defaults are Kustomize's."""

from __future__ import annotations

import json
import re
from typing import Any

import helm_python
import promql_parser
import pytest
import yaml

from docs.generate import helm as generated
from resnet50_gateway import settings as gateway_settings
from resnet50_server.memory_bound import memory_bound, total
from resnet50_server.rollout.split import Split
from resnet50_server.rollout.variants_file import parse_variants_file
from resnet50_server.settings import Settings
from tests.support.custom_resources import is_custom, schema_errors
from tests.support.deployments import (
    DEPLOY,
    KUBERNETES,
    ROOT,
    Dockerfile,
    documents,
    settings_of,
    variables,
)
from tests.support.helm import CHART, RELEASE, chart, kinds, of_kind, pod_of, render, server_of
from tests.support.helm_options import MATRIX, OPTIONS, TLS, VARIANTS_FILE
from tests.support.kubernetes import VERSIONS, kubernetes_errors


def settings_with(values: dict[str, Any], patch: pytest.MonkeyPatch) -> Settings:
    """Return what the rendered container tells the server."""
    server = server_of(render(values))
    assert server["args"][0] == "serve"
    told = Dockerfile().environment | variables(server)
    gateway = {name for name in told if name.startswith(gateway_settings.ENV_PREFIX)}
    settings = settings_of(
        server["args"][1:], {name: told[name] for name in set(told) - gateway}, patch
    )
    for name in gateway:
        patch.setenv(name, told[name])
    assert gateway_settings.unknown_environment() == []
    gateway_settings.Settings()
    return settings


def assert_valid(objects: list[dict[str, Any]], *versions: str) -> None:
    for manifest in objects:
        if is_custom(manifest):
            assert schema_errors(manifest) == []
        else:
            for version in versions:
                assert kubernetes_errors(manifest, version) == []


# Validity


@pytest.mark.parametrize("option", OPTIONS)
def test_option_is_valid_for_kubernetes(option):
    # An image is a volume in newer versions.
    versions = VERSIONS[1:] if option == "image volume" else VERSIONS
    assert_valid(render(OPTIONS[option]), *versions)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_has_valid_settings_within_the_memory_limit(option, monkeypatch):
    told = settings_with(OPTIONS[option], monkeypatch)
    limit = server_of(render(OPTIONS[option]))["resources"]["limits"]["memory"]
    assert total(memory_bound(told)) <= int(limit.removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("number", range(len(MATRIX)))
def test_options_are_valid_together(number, monkeypatch):
    assert_valid(render(MATRIX[number]), VERSIONS[1])
    settings_with(MATRIX[number], monkeypatch)


@pytest.mark.parametrize("option", OPTIONS)
def test_pod_mounts_all_of_its_volumes_and_no_others(option):
    objects = render(OPTIONS[option])
    pods = [pod_of(objects, kind) for kind in ("Deployment", "Job") if kind in kinds(objects)]
    for pod in pods:
        containers = [*pod["containers"], *pod.get("initContainers", [])]
        mounted = {one["name"] for container in containers for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in pod["volumes"]}
        for container in containers:
            paths = [one["mountPath"] for one in container["volumeMounts"]]
            assert len(paths) == len(set(paths))


@pytest.mark.parametrize("option", OPTIONS)
def test_names_and_selectors_of_the_objects_match(option):
    objects = render(OPTIONS[option])
    deployment = of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    ports = {one["name"] for one in server_of(objects)["ports"]}
    for manifest in objects:
        spec = manifest.get("spec", {})
        selectors = {
            "Deployment": [spec.get("selector", {}).get("matchLabels")],
            "Service": [spec.get("selector")],
            "PodDisruptionBudget": [spec.get("selector", {}).get("matchLabels")],
            "PodMonitor": [spec.get("selector", {}).get("matchLabels")],
            "NetworkPolicy": [spec.get("podSelector", {}).get("matchLabels")],
        }.get(manifest["kind"], [])
        for selector in selectors:
            assert selector and selector.items() <= labels.items()
        if manifest["kind"] == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        if "scaleTargetRef" in spec:
            assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        if manifest["kind"] == "GRPCRoute":
            services = {one["metadata"]["name"] for one in objects if one["kind"] == "Service"}
            (rule,) = spec["rules"]
            assert {one["name"] for one in rule["backendRefs"]} <= services
    named = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(named) == len(set(named))


def test_two_releases_of_a_namespace_share_no_object_and_no_pod():
    one, other = render(), render(release="other")
    names = [{(each["kind"], each["metadata"]["name"]) for each in some} for some in (one, other)]
    assert not names[0] & names[1]
    selector = of_kind(one, "Deployment")["spec"]["selector"]["matchLabels"]
    labels = of_kind(other, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert not selector.items() <= labels.items()


def test_lint_has_no_finding_but_the_missing_icon():
    for values in (OPTIONS["default"], MATRIX[-1], OPTIONS["monitoring"], OPTIONS["route"]):
        report = helm_python.lint(CHART, values, strict=True)
        assert report["errors"] == []
        assert all("icon is recommended" in one["error"] for one in report["messages"])


def test_chart_has_the_version_of_the_project():
    description = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (image,) = base_kustomization()["images"]
    assert description["appVersion"] == image["newTag"]


def base_kustomization() -> dict[str, Any]:
    (found,) = documents(KUBERNETES / "kustomization.yaml")
    return found


def test_variants_file_is_mounted_and_its_official_weights_are_fetched(tmp_path):
    objects = render(OPTIONS["variants file"])
    server = variables(server_of(objects))
    assert server["RESNET50_VARIANTS_FILE"] == "/etc/resnet50/variants.toml"
    assert "RESNET50_VARIANTS" not in server
    config = of_kind(objects, "ConfigMap")
    (volume,) = [one for one in pod_of(objects)["volumes"] if one["name"] == "variants-file"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    file = tmp_path / "variants.toml"
    file.write_text(config["data"][file.name])
    declared = parse_variants_file(file, file.read_bytes())
    assert declared.splits == (Split("IMAGENET1K_V2", "IMAGENET1K_V1", 5.0, 0.0),)
    (fetch,) = pod_of(objects, "Job")["containers"]
    assert fetch["args"] == ["variants", "download", "IMAGENET1K_V2", "IMAGENET1K_V1"]


def test_change_of_the_variants_file_restarts_no_pod():
    changed = VARIANTS_FILE.replace("canary_percent = 5", "canary_percent = 20")
    one, other = render({"variantsFile": VARIANTS_FILE}), render({"variantsFile": changed})
    assert of_kind(one, "ConfigMap") != of_kind(other, "ConfigMap")
    assert of_kind(one, "Deployment") == of_kind(other, "Deployment")


# Values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 1}, "additional properties 'replica' not allowed"),
        ({"cpus": "four"}, "at '/cpus': got string, want integer"),
        ({"variants": []}, "at '/variants': minItems: got 0, want 1"),
        ({"variants": ["a,b"]}, "at '/variants/0'"),
        ({"autoscaling": {"type": "vpa"}}, "must be one of 'hpa', 'keda', 'none'"),
        ({"autoscaling": {"minReplicas": 0}}, "at '/autoscaling/minReplicas': minimum: got 0"),
        ({"settings": {"listen": ":1"}}, "additional properties 'listen' not allowed"),
        ({"settings": {"max_batch_size": 4096}}, "maximum: got 4,096, want 1,024"),
        ({"settings": {"max_batch": 1}}, "additional properties 'max_batch' not allowed"),
        ({"http": {"settings": {"max_headers": 1}}}, "'max_headers' not allowed"),
        ({"http": {"port": 9464}}, "at '/http/port'"),
        ({"tls": {"secretName": "A_B"}}, "at '/tls/secretName'"),
        ({"weights": {"source": "nfs"}}, "at '/weights/source'"),
        ({"weights": {"download": ["mine=/x"]}}, "at '/weights/download/0'"),
        ({"resources": {"limits": {"memory": "6 GB"}}}, "at '/resources/limits/memory'"),
        ({"grpcRoute": {"enabled": True}}, "at '/grpcRoute/parentRefs': minItems"),
        ({"podMonitor": {"interval": "often"}}, "at '/podMonitor/interval'"),
        ({"probes": {"startup": {"grpc": {}}}}, "additional properties 'grpc' not allowed"),
        ({"admin": {"enabled": True}}, "admin.enabled: needs tokens.secretName"),
        ({"tls": {"clientCaSecretName": "c"}}, "tls.clientCaSecretName: needs tls.secretName"),
        ({"variantsFile": "default ="}, "variantsFile: is not TOML: "),
        ({"variantsFile": 'default = "a"'}, "variantsFile: declare at least one [[variant]]"),
        ({"weights": {"source": "imageVolume"}}, "weights.imageVolume.reference: name the image"),
    ],
    ids=lambda one: json.dumps(one)[:40] if isinstance(one, dict) else "",
)
def test_wrong_value_is_refused_with_its_place(values, message):
    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    assert message in str(refused.value)


def test_schema_knows_each_setting_that_the_chart_does_not_derive():
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(schema["properties"]["settings"]["properties"])
    assert known == set(Settings.model_fields) - generated.DERIVED
    assert set(Settings.model_fields) >= generated.DERIVED


def test_every_value_has_a_description_and_a_type():
    text = (CHART / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    described = {value.path for value in generated.values(text)}
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    assert set(schema) == set(defaults) | {"global"}
    for key, value in defaults.items():
        if (key,) not in described:
            below = {path[:2] for path in described}
            assert {(key, one) for one in value} <= below, key
        if isinstance(value, dict) and "properties" in schema[key]:
            assert set(value) <= set(schema[key]["properties"])


# Behaviour


def test_numbers_are_written_without_exponents():
    told = variables(server_of(render(OPTIONS["settings"])))
    assert told["RESNET50_MAX_IMAGE_BYTES"] == str(2**26)
    assert told["RESNET50_MAX_QUEUE_DELAY_MS"] == "0.5"


@pytest.mark.parametrize(
    ("values", "threads"),
    [
        ({"cpus": 1}, ("1", "1", "1")),
        ({"cpus": 4}, ("1", "4", "2")),
        ({"cpus": 32}, ("4", "8", "11")),
        ({"cpus": 16, "gpu": {"enabled": True}}, (None, None, "16")),
        ({"resources": {"limits": {"cpu": "4"}}}, (None, None, None)),
        ({"settings": {"decode_threads": 3}}, ("1", "4", "3")),
    ],
    ids=str,
)
def test_threads_follow_the_cpus(values, threads):
    told = variables(server_of(render(values)))
    names = ("INSTANCES", "ENGINE_THREADS", "DECODE_THREADS")
    assert tuple(told.get(f"RESNET50_{name}") for name in names) == threads


def test_grace_period_is_longer_than_the_drain():
    pod = pod_of(render({"settings": {"drain_timeout_s": 90.5}}))
    assert pod["terminationGracePeriodSeconds"] == 106


def test_gpu_pod_has_the_cuda_image_and_one_gpu():
    objects = render(OPTIONS["gpu"])
    server = server_of(objects)
    assert server["image"].endswith("-cuda")
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod_of(objects)["runtimeClassName"] == "nvidia"


def test_other_weights_are_another_job():
    names = {
        of_kind(render({"variants": [one]}), "Job")["metadata"]["name"]
        for one in ("IMAGENET1K_V1", "IMAGENET1K_V2")
    }
    assert len(names) == 2


@pytest.mark.parametrize(
    "values", [{"weights": {"source": "image"}}, {"variants": ["mine=/variants/mine"]}], ids=str
)
def test_nothing_is_downloaded_where_no_official_weights_are_missing(values):
    assert "Job" not in kinds(render(values))


def test_init_container_may_reach_https_and_dns_only():
    policy = of_kind(render(OPTIONS["init container"]), "NetworkPolicy")
    ports = [port for rule in policy["spec"]["egress"] for port in rule["ports"]]
    assert {port["port"] for port in ports} == {53, 443}


def test_tls_leaves_no_plaintext_port_but_metrics(monkeypatch):
    objects = render(TLS | {"http": {"enabled": True}})
    told = settings_with(TLS | {"http": {"enabled": True}}, monkeypatch)
    assert not told.allow_plaintext
    services = [one["spec"]["ports"][0] for one in objects if one["kind"] == "Service"]
    assert [port.get("appProtocol") for port in services] == [None, "https"]


# Monitoring


def test_gateway_metrics_are_scraped_where_the_gateway_runs():
    values = {"http": {"enabled": True}, "podMonitor": {"enabled": True}}
    objects = render(values)
    server = server_of(objects)
    ports = {one["name"]: one["containerPort"] for one in server["ports"]}
    address = variables(server)["RESNET50_GATEWAY_METRICS_LISTEN"]
    assert address.endswith(f":{ports['http-metrics']}")
    endpoints = of_kind(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert [one["port"] for one in endpoints] == ["metrics", "http-metrics"]
    _, scrapes = of_kind(objects, "NetworkPolicy")["spec"]["ingress"]
    assert {one["port"] for one in scrapes["ports"]} == {"metrics", "http-metrics"}


def test_rule_and_dashboard_are_those_of_deploy():
    objects = render(OPTIONS["monitoring"])
    (rule,) = documents(KUBERNETES / "components/prometheus-operator/prometheus-rule.yaml")
    assert of_kind(objects, "PrometheusRule")["spec"] == rule["spec"]
    dashboard = of_kind(objects, "ConfigMap")["data"]["resnet50.json"]
    assert json.loads(dashboard) == json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())


def test_keda_scales_on_the_metric_of_the_release_that_servers_export():
    scaled = of_kind(render(OPTIONS["keda"]), "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    promql_parser.parse(query)
    (metric,) = re.findall(r"resnet50_\w+", query.partition("{")[0])
    assert f"### `{metric}`" in metrics_page() or f"`{metric}`" in metrics_page()
    assert f'pod=~"{RELEASE}-server-.+"' in query and 'namespace="resnet50"' in query
    autoscaler = of_kind(render(), "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]
    assert metric == autoscaler["metric"]["name"]


def metrics_page() -> str:
    return (ROOT / "docs" / "reference" / "metrics.md").read_text()


@pytest.mark.parametrize("option", ["route", "keda", "monitoring"])
def test_unknown_key_of_a_custom_resource_is_found(option):
    for manifest in render(OPTIONS[option]):
        if is_custom(manifest):
            manifest["spec"]["unknown"] = 1
            assert any("unknown" in message for message in schema_errors(manifest))


def test_packaged_chart_contains_the_linked_files(tmp_path):
    archive = helm_python.package(CHART, destination=tmp_path)
    with helm_python.Chart.load(archive) as packaged:
        files = {one["name"] for one in packaged.files}
        assert {"files/prometheus-rule.yaml", "files/dashboard.json"} <= files
        rendered = packaged.render(OPTIONS["monitoring"], name=RELEASE, namespace="resnet50")
    assert "Resnet50QueueAge" in rendered["resnet50/templates/prometheus-rule.yaml"]


def test_notes_name_the_address_and_the_protection_of_the_servers():
    notes = chart().render(TLS, name="vision", namespace="prod")["resnet50/templates/NOTES.txt"]
    assert "vision.prod.svc.cluster.local:50051 (TLS)" in notes
