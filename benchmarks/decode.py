"""How long decoding takes, fast path against Pillow: python -m benchmarks.decode FOLDER."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
from torchvision.models import ResNet50_Weights

from resnet50_server.images import decode, jpeg
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import Transform


def main() -> None:
    """Time both, in turn, over all JPEGs of the folder."""
    torch.set_num_threads(1)
    transform = Transform.of(ResNet50_Weights.DEFAULT.transforms())
    files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
    images = [file for file in files if file[:2] == b"\xff\xd8"]
    fast = jpeg.decode_jpeg

    def pillow(*_: object) -> None:
        """Leave every JPEG to Pillow."""

    durations: dict[str, list[float]] = {"fast": [], "pillow": []}
    for _ in range(5):
        for name, decoder in (("fast", fast), ("pillow", pillow)):
            setattr(decode, "decode_jpeg", decoder)  # noqa: B010
            started = time.perf_counter()
            for image in images:
                decode.decode(image, transform, ImageLimits())
            durations[name].append((time.perf_counter() - started) / len(images) * 1e3)
    for name, each in durations.items():
        print(f"{name:7} {statistics.median(each):.2f} ms an image, {len(images)} images")


if __name__ == "__main__":
    main()
