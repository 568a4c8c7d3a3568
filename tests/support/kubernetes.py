"""Schemas of Kubernetes, read once for each kind and version: a test checks many objects."""

from __future__ import annotations

import functools
import re
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import major_minor, schema_contents
from referencing import Registry, Resource

# The oldest that the manifests and the chart promise, and the newest whose schemas are available.
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def kubernetes_errors(manifest: dict[str, Any], version: str) -> list[str]:
    """Return the differences of an object from its schema, unknown fields among them."""
    validator = _validator(manifest["kind"], manifest["apiVersion"], version)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@functools.cache
def _validator(kind: str, api_version: str, version: str) -> Any:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    name = f"kubernetes-json-schema/{_folder(version)}/{kind.lower()}-{group}.json"
    schema = schema_contents(name, version)
    registry = Resource.from_contents(schema) @ (_definitions(version) @ Registry())
    return Draft202012Validator(schema, registry=registry)


@functools.cache
def _definitions(version: str) -> Any:
    name = f"kubernetes-json-schema/{_folder(version)}/_definitions.json"
    return Resource.from_contents(schema_contents(name, version))


def _folder(version: str) -> str:
    return f"v{major_minor(version)}.0-local-strict"
