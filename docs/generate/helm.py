"""The Helm chart: a table of its values, and the settings in the schema of its values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from resnet50_gateway.settings import Settings as GatewaySettings
from resnet50_server.settings import Settings

from .markdown import code, escaped, table

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "resnet50"
# Settings that templates/_settings.tpl derives from other values, or that need a volume.
DERIVED = {
    *("listen", "metrics_listen", "http_listen", "allow_plaintext", "config", "download"),
    *("tls_cert", "tls_key", "tls_client_ca", "tokens_file", "oip", "oip_model_name"),
    *("variants", "variants_file", "variants_dir", "weights_dir", "graph_cache_dir"),
}
# Settings of the gateway that the server gives it.
GIVEN = {
    *("listen", "metrics_listen", "metrics", "allow_plaintext"),
    *("tls_cert", "tls_key", "tls_client_ca", "server", "server_name"),
    *("server_tls", "server_ca", "server_cert", "server_key"),
}
_GROUP = re.compile(r"^# -- (.+) --$")
_KEY = re.compile(r"^( *)(\w+):")


@dataclass(frozen=True)
class Value:
    """A value of the chart.

    Attributes:
        group: Its heading in values.yaml.
        path: Its keys.
        text: Its description.
    """

    group: str
    path: tuple[str, ...]
    text: str


def values(text: str) -> Iterator[Value]:
    """Yield each key of values.yaml that has a comment, in order."""
    group, comment, parents = "", list[str](), list[tuple[int, str]]()
    for line in text.splitlines():
        if (heading := _GROUP.match(line)) is not None:
            group, comment = heading[1], []
        elif line.lstrip().startswith("#"):
            comment.append(line.strip("# "))
        elif (key := _KEY.match(line)) is not None:
            depth = len(key[1])
            parents = [*((at, name) for at, name in parents if at < depth), (depth, key[2])]
            if comment:
                yield Value(group, tuple(name for _, name in parents), " ".join(comment))
            comment = []
        else:
            comment = []


def section() -> str:
    """Return a heading and a table for each group of values."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    defaults, found = yaml.safe_load(text), list(values(text))
    parts: list[str] = []
    for group in dict.fromkeys(value.group for value in found):
        parts.append(f"## {group}")
        rows = (
            (code(".".join(value.path)), _default(defaults, value.path), escaped(value.text))
            for value in found
            if value.group == group
        )
        parts.append(table(("value", "default", "description"), rows))
    return "\n\n".join(parts)


def _default(defaults: Any, path: tuple[str, ...]) -> str:
    for key in path:
        defaults = defaults[key]
    return "" if defaults == "" else code(json.dumps(defaults))


def schema(text: str) -> str:
    """Return the schema of the values with the current settings of the server and the gateway.

    Args:
        text: The schema, whose other parts stay.
    """
    found = json.loads(text)
    properties = found["properties"]
    properties["settings"]["properties"] = _settings(Settings.model_json_schema(), DERIVED)
    http = properties["http"]["properties"]
    http["settings"]["properties"] = _settings(GatewaySettings.model_json_schema(), GIVEN)
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _settings(model: dict[str, Any], derived: set[str]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in field.items() if key not in ("title", "default")}
        for name, field in model["properties"].items()
        if name not in derived
    }
