"""Embed images that a DataLoader's workers preprocess: python examples/dataloader.py *.jpg.

The workers decode, resize and crop as the server would, and send its network's input: fewer bytes
than a large photo. Needs torch and resnet50-serving[images].
"""

from __future__ import annotations

import argparse
from itertools import chain

from torch.utils.data import DataLoader, Dataset

from resnet50_client import Client, PreprocessedImage
from resnet50_client.types import Preprocessor


class Photos(Dataset[PreprocessedImage]):
    """Image files, preprocessed by the worker that reads them.

    Clients can be arguments as well: they are pickled as their arguments, and each worker makes
    connections of its own.
    """

    def __init__(self, paths: list[str], preprocess: Preprocessor) -> None:
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> PreprocessedImage:
        return self.preprocess(self.paths[index])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", metavar="IMAGE")
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with Client(options.server) as client:
        photos = Photos(options.paths, client.preprocessor())
        # "spawn", because gRPC's threads do not survive a fork; `list` keeps images as they are.
        loader = DataLoader(
            photos,
            batch_size=32,
            num_workers=options.workers,
            collate_fn=list,
            multiprocessing_context="spawn",
        )
        images = chain.from_iterable(loader)  # read as fast as the server answers
        for path, embedding in zip(options.paths, client.embed_many(images), strict=True):
            print(f"{path}: {embedding.vector[:3]} …")


if __name__ == "__main__":
    main()
