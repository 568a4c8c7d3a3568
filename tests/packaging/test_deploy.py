"""Files of deploy/ are valid for the server, Kubernetes and Compose, and consistent."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from resnet50_client._addresses import DEFAULT_PORT
from resnet50_gateway import settings as gateway_settings
from resnet50_server.api.grpc_server import SERVICES
from resnet50_server.memory_bound import memory_bound, total
from resnet50_server.rollout.split import Split
from resnet50_server.rollout.variants_file import parse_variants_file
from resnet50_server.settings import CLIENT_ENVIRONMENT, ENV_PREFIX, Settings
from resnet50_server.variants.spec import parse_variant
from tests.support.administering import describe
from tests.support.deployments import (
    DEPLOY,
    KUBERNETES,
    ROOT,
    Dockerfile,
    documents,
    manifests,
    pods,
    seconds,
    settings_of,
    unit,
    variables,
)
from tests.support.kustomize import apply_component, apply_patch, base

# The health service's own name: SERVING for as long as the process lives.
ALIVE = "grpc.health.v1.Health"
# The oldest that kustomization.yaml promises, and the newest whose schemas are available.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
METRICS_PORT = 9464
SCHEMAS = ROOT / "tests" / "support" / "schemas"
OPERATOR_OBJECTS = [
    KUBERNETES / "components" / "prometheus-operator" / name
    for name in ("pod-monitor.yaml", "prometheus-rule.yaml")
]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
FILES = sorted(path for path in [*DEPLOY.rglob("*"), ROOT / "Dockerfile"] if path.is_file())
PAGES = [ROOT / "README.md", ROOT / "docs" / "how-to" / "deploy.md"]


def container_of(kind: str) -> dict:
    (container,) = pods()[kind]["spec"]["containers"]
    return container


def published(service: str) -> dict[int, int]:
    """Return a Compose service's ports: of the machine, with that of the container."""
    ports = {}
    for entry in COMPOSE["services"][service]["ports"]:
        host, outside, inside = entry.rsplit(":", 2)
        assert host == "127.0.0.1", f"{service} is published to everyone"
        ports[int(outside)] = int(inside)
    return ports


# Schemas


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [kind for kind in manifests() if kind != "Kustomization"])
def test_manifest_is_what_kubernetes_takes(kind, version):
    kubernetes_validate.validate(manifests()[kind], version, strict=True)


def test_schema_test_notices_a_key_that_kubernetes_does_not_know():
    manifest = manifests()["Deployment"]
    manifest["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="redinessProbe"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


def test_compose_file_is_what_compose_takes():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"),
            DEPLOY / "compose.yaml",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_yaml_parses_and_kustomize_names_every_manifest():
    templates = DEPLOY / "helm" / "resnet50" / "templates"
    for path in DEPLOY.rglob("*.y*ml"):
        if path.parent != templates:
            assert documents(path), path
    named = set(manifests()["Kustomization"]["resources"])
    assert named == {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}


# Settings


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=lambda path: path.name)
def test_every_environment_name_is_a_setting(path):
    known = {ENV_PREFIX + name.upper() for name in (*Settings.model_fields, *CLIENT_ENVIRONMENT)}
    prefix = gateway_settings.ENV_PREFIX
    known |= {prefix + name.upper() for name in gateway_settings.Settings.model_fields}
    known.add(prefix.rstrip("_"))  # in a template, before the name of a setting
    assert set(re.findall(rf"{ENV_PREFIX}[A-Z0-9_]*[A-Z0-9]", path.read_text())) <= known


def settings(where: str, patch: pytest.MonkeyPatch) -> Settings:
    """Return what the server is told in one of the places that start it."""
    image = Dockerfile()
    if where == "image":
        # As the Dockerfile tells its users.
        told = {"RESNET50_VARIANTS": "IMAGENET1K_V2", "RESNET50_ALLOW_PLAINTEXT": "true"}
        return settings_of(image.command[2:], image.environment | told, patch)
    if where == "compose":
        told = dict(COMPOSE["services"]["server"]["environment"])
        told["RESNET50_VARIANTS"] = re.fullmatch(
            r"\$\{RESNET50_VARIANTS:-(\w+)\}", told["RESNET50_VARIANTS"]
        )[1]
        return settings_of(image.command[2:], image.environment | told, patch)
    if where == "kubernetes":
        server = container_of("Deployment")
        assert server["args"][0] == "serve"
        return settings_of(server["args"][1:], image.environment | variables(server), patch)
    command, verb, *arguments = unit()["ExecStart"][0].split()
    assert (command.rpartition("/")[2], verb) == ("resnet50-server", "serve")
    environment = dict(line.split("=", 1) for line in unit()["Environment"])
    return settings_of(arguments, environment, patch)


PLACES = ["image", "compose", "kubernetes", "systemd"]


@pytest.mark.parametrize("where", PLACES)
def test_manifests_use_valid_settings_and_matching_ports(where, monkeypatch):
    (address,) = settings(where, monkeypatch).listen
    assert address.endswith(f":{DEFAULT_PORT}")
    # A container has to listen on all addresses; a host only if configured.
    assert address.startswith("127.0.0.1" if where == "systemd" else "0.0.0.0")


@pytest.mark.parametrize("where", PLACES)
def test_metrics_are_where_prometheus_looks(where, monkeypatch):
    assert settings(where, monkeypatch).metrics_listen.endswith(f":{METRICS_PORT}")


def test_image_does_not_decide_that_clear_text_is_meant():
    assert "RESNET50_ALLOW_PLAINTEXT" not in Dockerfile().environment


def test_supervisors_wait_longer_than_the_drain_lasts(monkeypatch):
    pod = pods()["Deployment"]["spec"]
    pause_s = container_of("Deployment")["lifecycle"]["preStop"]["sleep"]["seconds"]
    for where, grace_s, before_s in (
        ("kubernetes", pod["terminationGracePeriodSeconds"], pause_s),
        ("compose", seconds(COMPOSE["services"]["server"]["stop_grace_period"]), 0),
        ("systemd", seconds(unit()["TimeoutStopSec"][0]), 0),
    ):
        drain_s = settings(where, monkeypatch).drain_timeout_s
        # Some seconds on top: for the last replies, and for closing the engine.
        assert grace_s >= before_s + drain_s + 5, where


# Ports


def test_ports_are_the_same_everywhere():
    ports = {DEFAULT_PORT, METRICS_PORT}
    assert Dockerfile().ports == ports
    named = {port["name"]: port["containerPort"] for port in container_of("Deployment")["ports"]}
    assert named == {"grpc": DEFAULT_PORT, "metrics": METRICS_PORT}
    assert published("server") == {DEFAULT_PORT: DEFAULT_PORT}
    # Clients of a headless Service connect to the pods themselves.
    (port,) = manifests()["Service"]["spec"]["ports"]
    assert (port["port"], named[port["targetPort"]]) == (DEFAULT_PORT, DEFAULT_PORT)
    annotations = pods()["Deployment"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(METRICS_PORT)
    for rule in manifests()["NetworkPolicy"]["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= set(named)
    nginx = (DEPLOY / "nginx.conf").read_text()
    assert re.findall(r"^\s*listen \S+:(\d+) http2;", nginx, re.M) == [str(DEFAULT_PORT)]


def test_prometheus_and_grafana_find_what_they_are_pointed_at():
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (where,) = job["static_configs"]
    assert where["targets"] == [f"server:{METRICS_PORT}"]
    assert "server" in COMPOSE["services"]
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    name, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
    assert int(port) in published(name).values()
    (dashboards,) = yaml.safe_load((provisioning / "dashboards/resnet50.yaml").read_text())[
        "providers"
    ]
    folder = dashboards["options"]["path"]
    assert (DEPLOY / "grafana" / "dashboard.json").is_file()
    mounts = [entry.split(":") for entry in COMPOSE["services"]["grafana"]["volumes"]]
    assert ["./grafana/dashboard.json", f"{folder}/resnet50.json", "ro"] in mounts
    assert ["./grafana/provisioning", "/etc/grafana/provisioning", "ro"] in mounts


# Kubernetes


def test_probes_match_the_server_and_spare_loading_or_draining():
    server = container_of("Deployment")
    probes = {name: server[name]["grpc"] for name in server if name.endswith("Probe")}
    assert {probe["port"] for probe in probes.values()} == {DEFAULT_PORT}
    assert probes["readinessProbe"]["service"] in SERVICES
    # A server that loads or drains is NOT_SERVING in all but this.
    assert probes["startupProbe"]["service"] == ALIVE
    assert probes["livenessProbe"]["service"] == ALIVE


HANDLERS = {"grpc", "httpGet", "tcpSocket", "exec"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def with_components(*names: str) -> dict[str, dict]:
    objects = base()
    for name in names:
        apply_component(objects, name)
    return objects


def server_of(objects: dict[str, dict]) -> dict:
    (server,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return server


def settings_with(patch: pytest.MonkeyPatch, *names: str) -> Settings:
    server = server_of(with_components(*names))
    told = Dockerfile().environment | variables(server)
    return settings_of(server["args"][1:], told, patch)


@pytest.mark.parametrize("names", [(), ("tls",), ("admin",), ("tls", "admin")], ids="-".join)
def test_each_probe_has_exactly_one_handler(names):
    server = server_of(with_components(*names))
    for probe in PROBES:
        assert len(HANDLERS & set(server[probe])) == 1, probe


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "names",
    [("tls",), ("admin",), ("tls", "admin"), ("variants-file",), ("admin", "variants-file")],
    ids="-".join,
)
def test_components_are_valid_for_kubernetes(names, version):
    for manifest in with_components(*names).values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_tls_component_probes_the_metrics_port_and_ends_plaintext(monkeypatch):
    objects = with_components("tls")
    server = server_of(objects)
    found = {probe: server[probe]["httpGet"] for probe in PROBES}
    assert {one["port"] for one in found.values()} == {"metrics"}
    assert [found[probe]["path"] for probe in PROBES] == ["/livez", "/readyz", "/livez"]
    assert "appProtocol" not in objects["Service"]["spec"]["ports"][0]
    told = settings_with(monkeypatch, "tls")
    assert not told.allow_plaintext
    assert {told.tls_cert.parent, told.tls_key.parent} == {mount_of(objects, "tls")}


def test_admin_component_enables_loads_and_splits(monkeypatch):
    objects = with_components("admin")
    told = settings_with(monkeypatch, "admin")
    assert told.tokens_file.parent == mount_of(objects, "tokens")
    assert told.variants_dir == mount_of(objects, "custom-variants")


def test_variants_file_component_mounts_a_file_that_the_server_takes(monkeypatch):
    folder = KUBERNETES / "components" / "variants-file"
    (generator,) = yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]
    objects = with_components("variants-file")
    told = settings_with(monkeypatch, "variants-file")
    (volume,) = [
        one
        for one in objects["Deployment"]["spec"]["template"]["spec"]["volumes"]
        if one["name"] == "variants-file"
    ]
    assert volume["configMap"]["name"] == generator["name"]
    # Another name for each content would restart all pods.
    assert generator["options"]["disableNameSuffixHash"] is True
    assert told.variants_file == mount_of(objects, "variants-file") / generator["files"][0]
    (mount,) = [one for one in server_of(objects)["volumeMounts"] if one["name"] == "variants-file"]
    assert "subPath" not in mount  # the kubelet does not update those
    file = folder / generator["files"][0]
    declared = parse_variants_file(file, file.read_bytes())
    assert [spec.name for spec in declared.specs] == ["IMAGENET1K_V2"]


def test_examples_in_the_comments_of_the_variants_file_are_right(tmp_path):
    text = (KUBERNETES / "components" / "variants-file" / "variants.toml").read_text()
    text = re.sub(r"^# (?=\[\[|\w+ = )", "", text, flags=re.MULTILINE)
    describe(tmp_path / "pets", parse_variant("IMAGENET1K_V2").categories)
    text = text.replace("/custom-variants/pets-2", "pets")
    declared = parse_variants_file(tmp_path / "variants.toml", text.encode())
    assert [spec.name for spec in declared.specs] == ["IMAGENET1K_V2", "pets"]
    assert declared.splits == (Split("IMAGENET1K_V2", "pets", 5.0, 10.0),)


@pytest.mark.parametrize("name", ["weights-image", "weights-init"])
def test_component_replaces_the_claim_and_its_job(name):
    objects = with_components(name)
    assert not {"Job", "PersistentVolumeClaim"} & set(objects)
    for version in ("1.33", VERSIONS[1]) if name == "weights-image" else VERSIONS:
        for manifest in objects.values():
            kubernetes_validate.validate(manifest, version, strict=True)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == "weights"]
    assert set(volume) == {"name", "image" if name == "weights-image" else "emptyDir"}
    assert mount_of(objects, "weights") == Path(variables(server_of(objects))["TORCH_HOME"])


def test_init_container_downloads_what_the_server_serves(monkeypatch):
    objects = with_components("weights-init")
    (fetch,) = objects["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    told = settings_with(monkeypatch, "weights-init")
    assert fetch["args"] == ["variants", "download", *told.variants]
    assert variables(fetch)["TORCH_HOME"] == variables(server_of(objects))["TORCH_HOME"]
    assert fetch["securityContext"] == server_of(objects)["securityContext"]
    writable = {one["mountPath"] for one in fetch["volumeMounts"] if not one.get("readOnly")}
    assert {variables(fetch)["TORCH_HOME"], variables(fetch)["HOME"]} <= writable
    (rule,) = objects["NetworkPolicy"]["spec"]["egress"]
    assert {one["port"] for one in rule["ports"]} == {53, 443}


def test_canary_overlay_has_both_variants_within_the_memory_limit(monkeypatch):
    page = (ROOT / "docs" / "how-to" / "canary-and-shadow.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    overlay = yaml.safe_load(text)
    objects = with_components(*[one.rpartition("/")[2] for one in overlay["components"]])
    for entry in overlay["patches"]:
        apply_patch(objects, entry["patch"])
    for version in VERSIONS:
        for manifest in objects.values():
            kubernetes_validate.validate(manifest, version, strict=True)
    server = server_of(objects)
    environment = Dockerfile().environment | variables(server)
    told = settings_of(server["args"][1:], environment, monkeypatch)
    (job,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    assert job["args"] == ["variants", "download", *told.variants]
    assert len(told.variants) == 2
    assert total(memory_bound(told)) <= size(server["resources"]["limits"]["memory"])


def test_prometheus_operator_component_has_the_alerts_of_the_page():
    folder = KUBERNETES / "components" / "prometheus-operator"
    page = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    _, _, section = page.partition("## Alerts")
    (block,) = re.findall(r"```promql\n(.*?)```", section, re.S)
    (rule,) = documents(folder / "prometheus-rule.yaml")
    (group,) = rule["spec"]["groups"]
    assert [one["expr"] for one in group["rules"]] == [
        line for line in block.splitlines() if not line.startswith("#")
    ]
    (monitor,) = documents(folder / "pod-monitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {one["name"] for one in container_of("Deployment")["ports"]}
    labels = pods()["Deployment"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


def operator_errors(path: Path, manifest: dict) -> list[str]:
    """Return the differences of an object of the Prometheus operator from its schema."""
    schema = json.loads((SCHEMAS / path.with_suffix(".json").name).read_text())
    return [error.message for error in Draft202012Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("path", OPERATOR_OBJECTS, ids=lambda path: path.stem)
def test_object_is_what_the_prometheus_operator_takes(path):
    (manifest,) = documents(path)
    assert operator_errors(path, manifest) == []


@pytest.mark.parametrize("path", OPERATOR_OBJECTS, ids=lambda path: path.stem)
def test_key_that_the_prometheus_operator_does_not_know_is_found(path):
    (manifest,) = documents(path)
    spec = manifest["spec"]
    (nested,) = spec.get("podMetricsEndpoints") or spec["groups"]
    nested["intervall"] = "30s"
    assert any("intervall" in message for message in operator_errors(path, manifest))


def mount_of(objects: dict[str, dict], volume: str) -> Path:
    """Return where the server mounts a volume that its pod has."""
    assert volume in {
        one["name"] for one in objects["Deployment"]["spec"]["template"]["spec"]["volumes"]
    }
    (mount,) = [one for one in server_of(objects)["volumeMounts"] if one["name"] == volume]
    return Path(mount["mountPath"])


def test_selectors_mean_the_servers_and_nothing_else():
    labels = pods()["Deployment"]["metadata"]["labels"]
    others = pods()["Job"]["metadata"]["labels"]
    spread = pods()["Deployment"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]
    objects = manifests()
    for selector in (
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        spread["matchLabels"],
    ):
        assert selector.items() <= labels.items()
        assert not selector.items() <= others.items()
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = objects["Deployment"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert target["apiVersion"] == deployment["apiVersion"]
    account = pods()["Deployment"]["spec"]["serviceAccountName"]
    assert account == objects["ServiceAccount"]["metadata"]["name"]


@pytest.mark.parametrize("kind", sorted(pods()))
def test_pods_have_no_right_that_they_do_not_need(kind):
    pod, container = pods()[kind]["spec"], container_of(kind)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(Dockerfile().user)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["volumes"]}


def test_manifests_mount_writable_caches_and_job_weights(monkeypatch):
    server, job = container_of("Deployment"), container_of("Job")
    told = settings("kubernetes", monkeypatch)
    mounts = {one["mountPath"]: one for one in server["volumeMounts"]}
    assert not mounts[str(told.graph_cache_dir)].get("readOnly")
    assert not mounts[variables(server)["HOME"]].get("readOnly")
    assert variables(server)["TORCH_HOME"] == variables(job)["TORCH_HOME"] in mounts
    assert not told.download
    assert job["args"] == ["variants", "download", *told.variants]
    claim = manifests()["PersistentVolumeClaim"]["metadata"]["name"]
    for kind in pods():
        (volume,) = [one for one in pods()[kind]["spec"]["volumes"] if one["name"] == "weights"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim
    assert manifests()["NetworkPolicy"]["spec"]["egress"] == []


@pytest.mark.parametrize("name", ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"])
def test_compilers_of_a_gpu_engine_can_write_their_caches(name):
    server = container_of("Deployment")
    environment = Dockerfile().environment | variables(server)
    mounts = {one["mountPath"]: one for one in server["volumeMounts"]}
    (mount,) = [path for path in mounts if environment[name].startswith(f"{path}/")]
    assert not mounts[mount].get("readOnly")
    in_unit = dict(line.split("=", 1) for line in unit()["Environment"])[name]
    assert in_unit.startswith(f"/var/cache/{unit()['CacheDirectory'][0]}/")


# Memory


def size(text: str) -> int:
    """Return a size in bytes, as Kubernetes, Compose and systemd write it."""
    number, unit = re.fullmatch(r"(\d+)([KMG])i?b?", text, re.IGNORECASE).groups()
    return int(number) * 1024 ** ("KMG".index(unit.upper()) + 1)


@pytest.mark.parametrize("where", ["compose", "kubernetes", "systemd"])
def test_memory_limit_holds_what_the_server_takes_at_most(where, monkeypatch):
    if where == "compose":
        server = COMPOSE["services"]["server"]
        (tmpfs,) = server["tmpfs"]
        allowed = size(server["mem_limit"]) - size(tmpfs.rpartition("size=")[2])
    elif where == "kubernetes":
        allowed = size(container_of("Deployment")["resources"]["limits"]["memory"])
    else:
        allowed = size(unit()["MemoryMax"][0])
    bound = total(memory_bound(settings(where, monkeypatch)))
    assert bound <= allowed, f"the server takes up to {bound} bytes"
