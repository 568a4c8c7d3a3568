"""Values of the Helm chart that its tests render: each option, and those that meet."""

from __future__ import annotations

import itertools
from typing import Any

import yaml

from tests.support.deployments import ROOT

TLS = {"tls": {"secretName": "resnet50-tls"}}
TOKENS = {"tokens": {"secretName": "resnet50-tokens"}}
VARIANTS_FILE = """
[[variant]]
name = "IMAGENET1K_V2"

[[variant]]
name = "IMAGENET1K_V1"

[[variant]]
name = "untrained"
seed = 1

[[split]]
variant = "IMAGENET1K_V2"
candidate = "IMAGENET1K_V1"
canary_percent = 5
"""
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "names": {"fullnameOverride": "vision", "image": {"digest": f"sha256:{'0' * 64}"}},
    "registry": {"image": {"repository": "r.example/x"}, "imagePullSecrets": [{"name": "r"}]},
    "settings": {"settings": {"max_image_bytes": 2**26, "max_queue_delay_ms": 0.5}},
    "cpu limit": {"resources": {"limits": {"cpu": 4}}},
    "gpu": {"gpu": {"enabled": True, "runtimeClassName": "nvidia"}, "cpus": 16},
    "oip": {"oip": {"enabled": True, "modelName": "vision"}},
    "http": {"http": {"enabled": True, "settings": {"cors_origin": ["https://a.example"]}}},
    "init container": {"weights": {"source": "initContainer"}},
    "existing claim": {"weights": {"persistentVolumeClaim": {"existingClaim": "models"}}},
    "new claim": {"weights": {"persistentVolumeClaim": {"storageClassName": "nfs"}}},
    "weights in the image": {"weights": {"source": "image"}},
    "image volume": {"weights": {"source": "imageVolume", "imageVolume": {"reference": "r/w:1"}}},
    "variants file": {"variantsFile": VARIANTS_FILE},
    "own variants": {"variants": ["mine=/variants/mine"]},
    "tls": TLS,
    "mtls": {"tls": {**TLS["tls"], "clientCaSecretName": "clients"}},
    "tokens": TOKENS,
    "admin": {**TOKENS, "admin": {"enabled": True}},
    "no service account": {"serviceAccount": {"create": False}},
    "service account": {"serviceAccount": {"name": "vision", "annotations": {"a.example/b": "c"}}},
    "any user id": {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}},
    "no network policy": {"networkPolicy": {"enabled": False}},
    "egress": {"networkPolicy": {"egress": [{"ports": [{"protocol": "TCP", "port": 4317}]}]}},
    "cluster ip": {"service": {"clusterIP": True, "annotations": {"a.example/b": "c"}}},
    "route": {
        "grpcRoute": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "gateways"}],
            "hostnames": ["models.example"],
        }
    },
    "keda": {"autoscaling": {"type": "keda", "keda": {"authenticationRef": "prometheus"}}},
    "no autoscaler": {"autoscaling": {"type": "none"}, "replicas": 3},
    "no disruption budget": {"podDisruptionBudget": {"enabled": False}},
    "share of disruption": {"podDisruptionBudget": {"maxUnavailable": "25%"}},
    "scheduling": {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "serving",
        "topologySpreadConstraints": [],
    },
    "probes": {"probes": {"startup": {"failureThreshold": 300}}},
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"release": "p"}, "interval": "15s"},
        "prometheusRule": {"enabled": True, "labels": {"release": "p"}},
        "dashboard": {"enabled": True},
    },
    "additions": {
        "podLabels": {"team": "vision"},
        "podAnnotations": {"a.example/b": "c"},
        "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "vision"}],
        "extraVolumes": [{"name": "models", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "models", "mountPath": "/models"}],
    },
}
EXAMPLES = sorted((ROOT / "examples" / "helm").glob("*.yaml"))
OPTIONS |= {path.name: yaml.safe_load(path.read_text()) for path in EXAMPLES}
# Options whose templates meet in one object.
FACTORS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, TLS),
    ({}, {**TOKENS, "admin": {"enabled": True}}),
    ({}, {"gpu": {"enabled": True}}),
    ({}, {"http": {"enabled": True}, "oip": {"enabled": True}}),
    *(({"weights": {"source": "initContainer"}}, {"weights": {"source": "image"}}),),
    ({}, {"autoscaling": {"type": "keda"}, "podMonitor": {"enabled": True}}),
)
# 16 of the 64 combinations, among which each three options meet in every way.
MATRIX = [
    {
        key: value
        for option, one in zip(FACTORS, chosen, strict=True)
        for key, value in option[one].items()
    }
    for a, b, c, d in itertools.product((0, 1), repeat=4)
    for chosen in ((a, b, c, d, a ^ b ^ c, b ^ c ^ d),)
]
