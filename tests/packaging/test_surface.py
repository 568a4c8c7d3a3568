"""Public names of the packages, equality of the two clients, and imports."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import resnet50_client
from resnet50_client import AsyncClient, AsyncStream, Client, Stream, errors
from resnet50_client._base_client import BaseClient
from resnet50_client._profiles import ENVIRONMENT
from resnet50_client.admin import AdminClient, AsyncAdminClient
from resnet50_metrics.scrape import METRICS
from resnet50_server.settings import CLIENT_ENVIRONMENT, ENV_PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "server" / "resnet50_server"
CLIENT = ROOT / "client" / "resnet50_client"


def test_exports_are_these_and_only_these():
    assert sorted(resnet50_client.__all__) == [
        "AsyncBulkResults",
        "AsyncClient",
        "AsyncStream",
        "BatchLatency",
        "BulkResults",
        "CallCancelledError",
        "CallObserver",
        "Category",
        "Classification",
        "Client",
        "Comparison",
        "ConflictError",
        "DataLossError",
        "DeadlineExceededError",
        "Embedding",
        "EmbeddingBatch",
        "EmbeddingSpaceError",
        "FailedPreconditionError",
        "FrameAnswer",
        "ImageInput",
        "InvalidImageError",
        "InvalidRequestError",
        "LoadResult",
        "Loading",
        "NoClassificationHeadError",
        "NotFoundError",
        "ObservedCall",
        "OverloadedError",
        "PermissionDeniedError",
        "PreprocessedImage",
        "PublishedAccuracy",
        "Quantization",
        "RawImage",
        "Resnet50Error",
        "RetryPolicy",
        "ServerError",
        "SetDefaultResult",
        "SourceLostError",
        "Stream",
        "StreamStats",
        "Timing",
        "TrafficReport",
        "TrafficShare",
        "TrafficSplit",
        "Transform",
        "TransformMismatchError",
        "UnauthenticatedError",
        "UnavailableError",
        "UnimplementedError",
        "Variant",
        "VariantChangeError",
        "VariantNotFoundError",
        "VariantRef",
        "VideoFrame",
        "__version__",
        "frames_from_raw",
        "frames_from_video",
    ]
    for name in set(resnet50_client.__all__) - {"ImageInput"}:  # an alias has none of its own
        assert getattr(resnet50_client, name).__doc__, name


def test_every_error_is_exported_and_stands_in_the_tree():
    tree = errors.__doc__
    defined = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.Resnet50Error)
    ]
    for name in defined:
        assert name in resnet50_client.__all__
        assert name in tree


PAIRS = [(Client, AsyncClient), (AdminClient, AsyncAdminClient)]


def public(kind: type) -> dict[str, object]:
    """Return the public attributes of a class and its bases."""
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


def test_blocking_client_is_what_the_asyncio_client_generates():
    done = subprocess.run(
        [sys.executable, str(ROOT / "client" / "generate_sync.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_both_clients_have_the_same_methods(blocking, asynchronous):
    assert public(blocking).keys() == public(asynchronous).keys()
    assert inspect.signature(blocking) == inspect.signature(asynchronous)


def test_only_clients_for_administration_change_variants():
    shared = public(BaseClient).keys()
    assert shared >= {"list_variants", "get_variant", "health", "wait_until_ready"}
    assert public(AdminClient).keys() - shared == {
        "load_variant",
        "unload_variant",
        "set_default_variant",
        "set_traffic_split",
        "list_traffic_splits",
        "delete_traffic_split",
    }
    assert public(Client).keys() - shared == {
        *("classify", "embed", "classify_many", "embed_many", "embed_batch"),
        *("classify_stream", "embed_stream", "preprocessor"),
    }


def parameters(method: object) -> list[tuple[str, str, object, Any]]:
    """Return names, kinds, defaults and types; asyncio has files and iterables of its own."""
    return [
        (
            one.name,
            one.kind.name,
            one.default,
            one.annotation
            if one.annotation is one.empty
            else re.sub(
                r" \| AsyncIterable\[\w+\]$",
                "",
                one.annotation.replace("AsyncImageInput", "ImageInput"),
            ),
        )
        for one in inspect.signature(method).parameters.values()
    ]


@pytest.mark.parametrize(
    ("blocking", "asynchronous", "name"),
    [(*pair, name) for pair in PAIRS for name in public(pair[0])],
)
def test_methods_of_both_clients_are_alike(blocking, asynchronous, name):
    blocking, asynchronous = getattr(blocking, name), getattr(asynchronous, name)
    assert parameters(blocking) == parameters(asynchronous)
    assert inspect.getdoc(blocking) == inspect.getdoc(asynchronous)
    returned = inspect.signature(blocking).return_annotation
    if returned.startswith("Stream["):
        assert inspect.signature(asynchronous).return_annotation == f"Async{returned}"
    elif "Generator" in returned:
        item = returned.removeprefix("Generator[").removesuffix(", None, None]")
        assert inspect.signature(asynchronous).return_annotation == f"AsyncGenerator[{item}, None]"
    elif "BulkResults" in returned:
        assert returned.startswith("types.")
        expected = returned.replace("types.", "types.Async", 1)
        assert inspect.signature(asynchronous).return_annotation == expected
    else:
        changed = name in ("from_profile", "from_environment", "from_ray", "with_options")
        assert inspect.iscoroutinefunction(asynchronous) is not changed
        assert inspect.signature(asynchronous).return_annotation == returned


def test_streams_of_both_clients_have_the_same_methods():
    assert public(Stream).keys() - {"close"} == public(AsyncStream).keys() - {"aclose"}


def test_what_both_clients_share_is_documented():
    documented = inspect.getdoc(BaseClient.__init__)
    for name in inspect.signature(BaseClient).parameters:
        assert f"    {name}: " in documented, name


def test_server_knows_the_environment_of_the_client():
    assert {ENV_PREFIX + name for name in CLIENT_ENVIRONMENT} == {*ENVIRONMENT, METRICS}
    assert not {name.upper() for name in Settings.model_fields} & set(CLIENT_ENVIRONMENT)


def imports(path: Path, package: Path) -> set[str]:
    """Return the modules that a file imports, relative ones spelled from their root package."""
    found = set()
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def importers(package: Path, *names: str) -> set[str]:
    """Return the files of a package that import one of `names` or something below it."""
    return {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(
            module == name or module.startswith(name + ".")
            for module in imports(path, package)
            for name in names
        )
    }


def test_server_and_client_never_import_each_other():
    assert importers(SERVER, "resnet50_client") == set()
    assert importers(CLIENT, "resnet50_server") == set()


# Modules that a program with a blocking client needs only for a feature, if at all.
ON_DEMAND = (
    *("torch", "torchvision", "PIL", "av", "typer", "rich", "pydantic", "opentelemetry"),
    *("fractions", "hashlib", "importlib.metadata", "json", "pathlib", "tomllib", "tomli", "uuid"),
    *(f"resnet50_client.{one}" for one in ("_async_client", "_profiles", "_sync_bulk", "admin")),
    *(f"resnet50_client.{one}" for one in ("_types.variants", "preprocess", "video")),
)
IMPORT = """
import sys
import grpc, numpy, google.protobuf
from resnet50.v1 import image_pb2, inference_pb2_grpc, result_pb2, variant_pb2_grpc
before = set(sys.modules)
from resnet50_client import Client
print(*sorted(set(sys.modules) - before))
"""


def test_importing_the_client_loads_nothing_on_demand():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "resnet50_client._client" in loaded
    assert set(ON_DEMAND).isdisjoint(loaded)


def test_names_that_load_on_demand_are_listed_and_complete():
    assert set(resnet50_client.__all__) <= set(dir(resnet50_client))
    for name in resnet50_client.__all__:
        assert getattr(resnet50_client, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Clinet'"):
        _ = resnet50_client.Clinet


RESOLVE = """
import dataclasses, inspect, sys, typing

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "PIL", "av", "opentelemetry"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import resnet50_client
from resnet50_client import opentelemetry

assert resnet50_client.ImageInput | None
names = {name: getattr(resnet50_client, name) for name in resnet50_client.__all__}
names["OpenTelemetryObserver"] = opentelemetry.OpenTelemetryObserver
seen = 0
for name, value in names.items():
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        continue
    typing.get_type_hints(value)
    seen += 1
    for member in dir(value) if inspect.isclass(value) else ():
        if member.startswith("_") and member != "__init__":
            continue
        found = inspect.getattr_static(value, member)
        found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        if inspect.isfunction(found) and found.__module__.startswith("resnet50_client"):
            typing.get_type_hints(found)
            inspect.signature(found, eval_str=True)
            seen += 1
print(seen)
"""


def test_public_types_resolve_without_optional_packages():
    done = subprocess.run([sys.executable, "-c", RESOLVE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
