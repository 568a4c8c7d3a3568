"""Dashboard and docs use the names that servers and gateways export; docs list all of them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import promql_parser
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from resnet50_client import AsyncClient
from resnet50_gateway import metrics as gateway
from resnet50_server.context import RequestContext
from resnet50_server.errors import InvalidImage, Unauthenticated
from resnet50_server.rollout.split import Split
from tests.support.pictures import encode, picture
from tests.support.scrape import ON, get
from tests.support.serving import serving

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
DOCS = (ROOT / "docs" / "reference" / "metrics.md").read_text()
QUERIES = DOCS + "".join(
    (ROOT / "docs" / "how-to" / name).read_text()
    for name in ("monitor.md", "use-the-response-cache.md")
)
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
DOCUMENTED = [
    line
    for block in re.findall(r"```promql\n(.*?)```", QUERIES, re.S)
    for line in block.splitlines()
    if not line.startswith("#")
]
# Files beside those that name metrics: autoscalers, alerts, adapters, readers.
PACKAGES = {path.name for folder in ("server", "client") for path in (ROOT / folder).iterdir()}
MENTIONS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder, pattern in (
        *(("deploy", "**/*.yaml"), ("deploy", "**/*.tpl"), ("docs/how-to", "*.md")),
        *(("docs/tutorials", "*.md"), ("docs/reference", "*.md")),
        *(("client/resnet50_metrics", "*.py"), ("server/resnet50_server/ray", "load.py")),
    )
    for path in (ROOT / folder).glob(pattern)
    if "resnet50_" in path.read_text()
)
# Labels that Prometheus itself adds to every series.
ADDED = {"instance", "job"}


async def exported(file: Path) -> str:
    both = ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    file.write_text("".join(f'[[variant]]\nname = "{name}"\n' for name in both))
    options = {"variants": [], "variants_file": file, "response_cache_bytes": 2**20}
    async with (
        serving(**options, **ON) as server,
        AsyncClient(server.addresses[0]) as client,
    ):
        await client.classify(encode(picture()))
        server.parts.traffic.set(Split(both[0], both[1], shadow_percent=100.0))
        # Families show their labels once they have counted.
        call = RequestContext("Classify", "id", ())
        server.parts.events.call_ended(call, "INVALID_ARGUMENT", InvalidImage("image", "is broken"))
        server.parts.events.call_ended(
            call, "UNAUTHENTICATED", Unauthenticated("TOKEN_MISSING", "none")
        )
        return (await get(server, "/metrics"))[1]


def exported_by_gateway() -> str:
    metrics = gateway.Metrics("1")
    metrics.request_started()
    metrics.request_ended("/v1/classify", 200, 0.1, 1, 1)
    metrics.stream_opened()
    metrics.stream_ended("/v1/stream", None, 1, 1)
    metrics.call_ended("a:1", "OK")
    text = generate_latest(metrics.registry).decode()
    return text[text.index("# HELP resnet50_") :]  # the server has those of the process as well


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> SimpleNamespace:
    """Return what is exported: labels by the names of samples and of families, and kinds."""
    file = tmp_path_factory.mktemp("file") / "variants.toml"
    text = asyncio.run(exported(file)) + exported_by_gateway()
    found = SimpleNamespace(labels={}, names={}, kinds={})
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.kinds[name] = family.type
        for sample in family.samples:
            found.labels.setdefault(sample.name, set()).update(sample.labels)
            found.names.setdefault(name, set()).update(set(sample.labels) - {"le"})
    return found


def parsed(expression: str):
    """Return an expression as a tree, Grafana's own words replaced as it would."""
    return promql_parser.parse(expression.replace("$__rate_interval", "1m"))


def nodes(tree) -> Iterator:
    yield tree
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (below := getattr(tree, name, None)) is not None:
            yield from nodes(below)
    for below in getattr(tree, "args", None) or []:
        yield from nodes(below)


def selectors(expression: str) -> list:
    return [
        node for node in nodes(parsed(expression)) if isinstance(node, promql_parser.VectorSelector)
    ]


def grouped(expression: str) -> set[str]:
    """Return the labels that an expression groups or joins by."""
    found = set()
    for node in nodes(parsed(expression)):
        modifier = getattr(node, "modifier", None)
        for part in (modifier, getattr(modifier, "matching", None)):
            found |= set(getattr(part, "labels", None) or [])
    return found


@pytest.mark.parametrize("expression", sorted({*EXPRESSIONS, *DOCUMENTED}))
def test_expression_uses_names_and_labels_that_are_exported(expression, families):
    used = selectors(expression)
    assert used
    allowed = set(ADDED)
    for selector in used:
        assert selector.name in families.labels, selector.name
        labels = families.labels[selector.name] | ADDED
        allowed |= labels
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, (selector.name, matcher.name)
    assert grouped(expression) <= allowed


@pytest.mark.parametrize("file", MENTIONS)
def test_metrics_that_a_file_names_are_exported(file, families):
    # Not modules (`resnet50_client.aio`), patterns (`resnet50_split_*`) and packages.
    named = set(re.findall(r"(?<![\w./-])resnet50_\w+[a-z](?![\w./*-])", (ROOT / file).read_text()))
    assert named - PACKAGES <= families.labels.keys() | families.names.keys()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_legend_names_labels_that_the_result_has(panel, families):
    for target in panel["targets"]:
        tree = parsed(target["expr"])
        kept = grouped(target["expr"])
        if not any(isinstance(node, promql_parser.AggregateExpr) for node in nodes(tree)):
            kept = ADDED.union(*(families.labels[one.name] for one in selectors(target["expr"])))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept


def test_dashboard_shows_every_family(families):
    shown = {selector.name for expression in EXPRESSIONS for selector in selectors(expression)}
    suffix = re.compile(r"_(bucket|sum|count)$")
    # It is a dashboard of servers.
    of_ours = {name for name in families.names if re.match("resnet50_(?!gateway_)", name)}
    assert of_ours <= shown | {suffix.sub("", name) for name in shown}


def test_docs_list_what_is_exported(families):
    rows = re.findall(r"^\| `(resnet50_\w+)` \|(.*?)\| (\w+) \| ", DOCS, re.M)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels, _ in rows}
    assert documented == {
        name: labels for name, labels in families.names.items() if name.startswith("resnet50_")
    }
    assert {name: kind for name, _, kind in rows} == {
        name: families.kinds[name] for name in documented
    }


def test_dashboard_is_one_that_grafana_takes():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$(?!__)\{?(\w+)", json.dumps(DASHBOARD))) <= variables
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"


def test_variables_ask_for_labels_that_are_exported(families):
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
            assert asked[2] in families.labels[asked[1]] | ADDED
