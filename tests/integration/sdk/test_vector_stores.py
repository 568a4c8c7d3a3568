"""LanceDB and Qdrant: vectors of one embedding space only, in real stores, from real servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet50_cli.output import SOME_FAILED
from resnet50_client import Client, EmbeddingSpaceError, VariantNotFoundError
from tests.support.commands import resnet50
from tests.support.examples import load_example, run_example
from tests.support.pictures import encode, photo_like
from tests.support.serving import server_processes

# In a table's metadata instead of an address.
SERVER = "$var:resnet50_server"


@pytest.fixture(scope="module")
def addresses():
    """Two servers, whose variants of one name have different weights."""
    torch = ("--engine", "torch")
    with server_processes() as start:
        servers = [
            start("--variants", "cats=random:0", "--variants", "dogs=random:1", *torch),
            start("--variants", "cats=random:2", *torch),
        ]
        yield [server.wait_until_listening() for server in servers]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four images, the third of which is invalid."""
    found = tmp_path / "images"
    found.mkdir()
    for number in range(4):
        content = b"text" if number == 2 else encode(photo_like(64, 48, number))
        (found / f"{number}.png").write_bytes(content)
    return found


# Both stores take seconds to import, which only the processes that run these tests spend.


def connect(folder: Path) -> Any:
    """Return the LanceDB database of a folder."""
    import lancedb

    return lancedb.connect(folder)


def serve_from(address: str) -> None:
    """Set the server that tables use from now on."""
    from lancedb.embeddings import get_registry

    get_registry().set_var("resnet50_server", address)


def schema_of(**arguments: Any) -> type:
    """Return the schema of a table of image files, and their vectors."""
    from lancedb.pydantic import LanceModel, Vector

    from resnet50_client.lancedb import ImageEmbeddings

    embeddings = ImageEmbeddings.create(**{"server": SERVER} | arguments)

    class Picture(LanceModel):
        image: bytes | None = embeddings.SourceField()
        vector: Vector(2048) | None = embeddings.VectorField()  # type: ignore[valid-type]

    return Picture


def rows_of(*files: Path) -> list[dict[str, bytes]]:
    return [{"image": file.read_bytes()} for file in files]


def test_table_finds_the_image_that_is_searched_for(addresses, folder, tmp_path):
    serve_from(addresses[0])
    table = connect(tmp_path / "db").create_table("t", schema=schema_of())
    files = [folder / name for name in ("0.png", "1.png", "3.png")]
    table.add(rows_of(*files))
    queries = (files[0].read_bytes(), str(files[1]), Image.open(files[2]))
    for file, query in zip(files, queries, strict=True):
        (found,) = table.search(query).limit(1).to_list()
        assert found["image"] == file.read_bytes()
        assert found["_distance"] == pytest.approx(0, abs=1e-4)
    with Client(addresses[0]) as client:
        expected = client.embed(files[0], l2_normalize=True).vector
    kept = table.search(files[0].read_bytes()).limit(1).to_list()[0]["vector"]
    np.testing.assert_allclose(kept, expected, atol=1e-4)


def test_reopened_table_refuses_other_weights(addresses, folder, tmp_path):
    serve_from(addresses[0])
    database = connect(tmp_path / "db")
    database.create_table("t", schema=schema_of(variant="cats")).add(rows_of(folder / "0.png"))
    serve_from(addresses[1])
    table = database.open_table("t")
    # LanceDB's own error, which has ours.
    with pytest.raises(RuntimeError, match=r"EmbeddingSpaceError: space: .* of cats@.* new table"):
        table.add(rows_of(folder / "1.png"))
    with pytest.raises(EmbeddingSpaceError, match="cannot be compared"):
        table.search((folder / "0.png").read_bytes()).to_list()
    assert table.count_rows() == 1
    serve_from(addresses[0])
    assert len(database.open_table("t").search((folder / "0.png").read_bytes()).to_list()) == 1


def test_table_takes_no_function_of_another_variant(addresses, folder, tmp_path):
    serve_from(addresses[0])
    database = connect(tmp_path / "db")
    database.create_table("t", schema=schema_of(variant="cats")).add(rows_of(folder / "0.png"))
    with pytest.raises(ValueError, match="schema"):
        database.create_table("t", schema=schema_of(variant="dogs"), exist_ok=True)
    database.open_table("t").add(rows_of(folder / "0.png"))
    first, second = database.open_table("t").search().to_list()
    np.testing.assert_allclose(first["vector"], second["vector"], atol=1e-4)


def test_table_keeps_variant_and_space_but_no_token(addresses, tmp_path, monkeypatch):
    for name, value in {"SERVER": addresses[0], "VARIANT": "dogs", "TOKEN": "secret"}.items():
        monkeypatch.setenv(f"RESNET50_{name}", value)
    monkeypatch.setenv("RESNET50_INSECURE_TOKEN", "true")
    table = connect(tmp_path / "db").create_table("t", schema=schema_of(server=None))
    (kept,) = json.loads(table.schema.metadata[b"embedding_functions"])
    with Client(addresses[0]) as client:
        space = client.get_variant("dogs").embedding_space
    assert kept["name"] == "resnet50"
    assert kept["model"] == {"server": None, "variant": "dogs", "space": space}


def test_invalid_image_is_dropped_or_refused_as_asked(addresses, folder, tmp_path, caplog):
    serve_from(addresses[0])
    table = connect(tmp_path / "db").create_table("t", schema=schema_of())
    rows = [*rows_of(*sorted(folder.iterdir())), {"image": None}]
    with pytest.raises((RuntimeError, ValueError)):
        table.add(rows, on_bad_vectors="error")
    assert table.count_rows() == 0
    table.add(rows, on_bad_vectors="drop")
    assert table.count_rows() == 3
    assert "image 2 of a column has no vector: image" in caplog.text


def test_unknown_variant_is_refused_at_once(addresses, tmp_path):
    serve_from(addresses[0])
    with pytest.raises(VariantNotFoundError, match="birds"):
        connect(tmp_path / "db").create_table("t", schema=schema_of(variant="birds"))


def test_lance_file_of_the_command_is_a_table(addresses, folder, tmp_path):
    out = tmp_path / "db" / "photos.lance"
    out.parent.mkdir()
    done = resnet50("embed", folder, "--out", out, server=addresses[0])
    assert done.returncode == SOME_FAILED, done.stderr  # an image is invalid
    table = connect(tmp_path / "db").open_table("photos")
    with Client(addresses[0]) as client:
        vector = client.embed(folder / "1.png").vector
    found = table.search(vector, vector_column_name="vector").limit(1).to_list()
    assert Path(found[0]["path"]).name == "1.png"


def test_example_finds_images_that_look_alike(addresses, folder, tmp_path):
    for _ in range(2):  # images are added once
        printed = run_example(
            "search_lancedb",
            *(folder, folder / "1.png", "--database", tmp_path / "db", "--server", addresses[0]),
        )
        lines = [line.split() for line in printed.splitlines()]
        assert [float(lines[0][0]), lines[0][1]] == [0.0, str(folder / "1.png")]
        assert len(lines) == 3


def test_qdrant_collection_refuses_other_weights(addresses, folder):
    from qdrant_client import QdrantClient

    example, store = load_example("search_qdrant"), QdrantClient(":memory:")
    files = sorted(folder.iterdir())
    with Client(addresses[0]) as client, Client(addresses[1]) as other:
        assert example.add(store, client, files) == example.add(store, client, files) == 3
        assert store.count(example.COLLECTION).count == 3
        found = example.search(store, client, folder / "3.png")
        assert found[0].payload == {"path": str(folder / "3.png")}
        assert found[0].score == pytest.approx(1.0, abs=1e-4)
        with pytest.raises(EmbeddingSpaceError, match="has vectors of cats@"):
            example.add(store, other, files)
        with pytest.raises(EmbeddingSpaceError, match="has vectors of cats@"):
            example.search(store, other, folder / "3.png")
    assert store.count(example.COLLECTION).count == 3


def test_qdrant_example_runs_in_local_mode(addresses, folder, tmp_path):
    printed = run_example(
        "search_qdrant",
        *(folder, folder / "0.png", "--database", tmp_path / "db", "--server", addresses[0]),
    )
    assert printed.splitlines()[0] == f"1.0000  {folder / '0.png'}"
