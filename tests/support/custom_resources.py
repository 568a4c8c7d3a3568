"""Schemas of custom resources: of KEDA, KServe, the Gateway API and the Prometheus operator."""

from __future__ import annotations

import json
import re
from typing import Any

from jsonschema import Draft202012Validator

from .deployments import ROOT

SCHEMAS = ROOT / "tests" / "support" / "schemas"
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def is_custom(manifest: dict[str, Any]) -> bool:
    """Return whether the API group of an object is none of Kubernetes itself."""
    group, _, _ = manifest["apiVersion"].rpartition("/")
    return group.startswith("gateway.") or ("." in group and not group.endswith(".k8s.io"))


def schema_errors(manifest: dict[str, Any]) -> list[str]:
    """Return the differences of a custom resource from the schema of its kind, with places."""
    path = SCHEMAS / f"{_WORD.sub('-', manifest['kind']).lower()}.json"
    found = Draft202012Validator(json.loads(path.read_text())).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]
