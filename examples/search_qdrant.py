"""Search a folder for images that look alike: python examples/search_qdrant.py FOLDER IMAGE.

The collection keeps the name of its embedding space, and vectors of another one are refused: those
of other weights cannot be compared. Needs resnet50-serving and qdrant-client.
"""

from __future__ import annotations

import argparse
import uuid
from pathlib import Path

from qdrant_client import QdrantClient, models

from resnet50_client import Client, EmbeddingSpaceError

COLLECTION = "images"


def check_space(store: QdrantClient, space: str) -> None:
    """Make the collection, or check that its vectors are of a space."""
    if not store.collection_exists(COLLECTION):
        size = models.VectorParams(size=2048, distance=models.Distance.COSINE)
        store.create_collection(COLLECTION, size, metadata={"space": space})
        return
    kept = (store.get_collection(COLLECTION).config.metadata or {}).get("space")
    if kept != space:
        raise EmbeddingSpaceError(f"space: {COLLECTION} has vectors of {kept}, not of {space}")


def add(store: QdrantClient, client: Client, files: list[Path]) -> int:
    """Add files to the collection; return how many are images."""
    batch = client.embed_batch(files)
    if batch.space is None:
        return 0
    check_space(store, batch.space)
    points = [
        models.PointStruct(
            id=str(uuid.uuid5(uuid.NAMESPACE_URL, file.resolve().as_uri())),
            vector=vector.tolist(),
            payload={"path": str(file)},
        )
        for row, (file, vector) in enumerate(zip(files, batch.vectors, strict=True))
        if row not in batch.errors
    ]
    store.upsert(COLLECTION, points)
    return len(points)


def search(store: QdrantClient, client: Client, image: Path) -> list[models.ScoredPoint]:
    """Return the points whose images look most like one."""
    embedding = client.embed(image)
    check_space(store, embedding.space)
    return store.query_points(COLLECTION, query=embedding.vector.tolist(), limit=5).points


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--database", default="images.qdrant", help="folder of Qdrant's local mode")
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT")
    options = parser.parse_args()
    store = QdrantClient(path=options.database)  # or url="http://localhost:6333"
    with Client(options.server) as client:
        add(store, client, sorted(options.folder.iterdir()))
        for point in search(store, client, options.image):
            print(f"{point.score:.4f}  {(point.payload or {})['path']}")
    store.close()


if __name__ == "__main__":
    main()
