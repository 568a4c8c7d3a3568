"""Search a folder for images that look alike: python examples/search_lancedb.py FOLDER IMAGE.

The table keeps the variant's embedding space: with other weights it refuses both new images and
searches. Needs resnet50-serving[lancedb].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lancedb
from lancedb.pydantic import LanceModel, Vector

from resnet50_client.lancedb import ImageEmbeddings

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("folder", type=Path)
parser.add_argument("image", type=Path)
parser.add_argument("--database", default="images.lancedb")
parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT")
options = parser.parse_args()

database = lancedb.connect(options.database)
if "images" in database.list_tables().tables:
    table = database.open_table("images")  # with the function that it was made with
else:
    embeddings = ImageEmbeddings.create(server=options.server)

    class Picture(LanceModel):
        """A row of the table."""

        path: str = embeddings.SourceField()
        vector: Vector(2048) = embeddings.VectorField()  # type: ignore[valid-type]

    table = database.create_table("images", schema=Picture)

known = {row["path"] for row in table.search().select(["path"]).to_list()}
files = [str(one) for one in sorted(options.folder.iterdir()) if str(one) not in known]
if files:
    table.add([{"path": file} for file in files], on_bad_vectors="drop")
for row in table.search(options.image.read_bytes()).limit(5).to_list():
    print(f"{row['_distance']:.4f}  {row['path']}")
