"""Large JPEGs, decoded exactly and at a fraction of their size: python -m benchmarks.large_photos.

    python -m benchmarks.large_photos [--megapixels 12 50 108] [--rounds 3] [--write]

Time, peak memory and distance of photos of 12, 50 and 108 megapixels (4:2:0, quality 90, one
thread), and how the distance depends on how many times larger than the resized image the scaled one
is. Linux only. With --write, the figures go into docs/reference/formats.md; `make large-photos`
does that. docs/adr/0030-scaled-jpeg-decoding.md.

No photo of that size is here, so they are made of the two that scikit-learn ships: enlarged, with
the fine detail of the photo itself laid over at the scale of single pixels, as a sharp lens has it.
Embeddings are those of networks without ImageNet's weights, which are not here either: one with
random weights, and the backbone of examples/digits.py.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torchvision.models import ResNet50_Weights, resnet50

from examples import digits
from resnet50_server.images import jpeg
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.resize import resize_and_crop
from resnet50_server.images.transform import Transform
from tests.support.pictures import PHOTOS

from . import page
from .expensive_images import memory_mib

PAGE = page.DOCS / "reference" / "formats.md"
TRANSFORM = Transform.of(ResNet50_Weights.IMAGENET1K_V2.transforms())
SIDES = {12: (4032, 3024), 50: (8160, 6120), 108: (12000, 9000), 200: (16320, 12240)}
STRIP_ROWS = 256
EXACT = ImageLimits(
    max_pixels=200_000_000,
    timeout_s=600,
    max_jpeg_pixels=200_000_000,
    exact_jpeg_pixels=200_000_000,
)
SCALED = replace(EXACT, exact_jpeg_pixels=1)
MULTIPLES = (1.0, 1.5, 2.0, 3.0, 4.0)
Pixels = NDArray[np.uint8]
Embed = Callable[[Pixels], NDArray[np.float32]]


def large_photo(source: Path, width: int, height: int) -> bytes:
    """Return a JPEG of a photo, enlarged, with detail at the scale of single pixels.

    Args:
        source: The photo.
        width: In pixels.
        height: In pixels.
    """
    with Image.open(source) as opened:
        photo = opened.convert("RGB")
    blurred = np.asarray(photo.filter(ImageFilter.GaussianBlur(2)), np.int16)
    detail = np.asarray(photo, np.int16) - blurred
    columns = np.arange(width) % detail.shape[1]
    canvas = np.array(photo.resize((width, height), Image.Resampling.BICUBIC))
    for top in range(0, height, STRIP_ROWS):
        rows = np.arange(top, min(height, top + STRIP_ROWS)) % detail.shape[0]
        strip = canvas[top : top + STRIP_ROWS]
        np.clip(strip + detail[rows[:, None], columns], 0, 255, out=strip, casting="unsafe")
    out = io.BytesIO()
    Image.fromarray(canvas).save(out, "JPEG", quality=90)
    return out.getvalue()


class Cost(NamedTuple):
    """Cost of decoding: seconds of a thread, and MiB at its peak."""

    seconds: float
    mib: float


def measure(path: str, limits: ImageLimits) -> tuple[Pixels, Cost]:
    """Decode a photo in a process of its own; return its pixels and what that took."""
    torch.set_num_threads(1)
    decode(PHOTOS[0].read_bytes(), TRANSFORM, limits)
    encoded = Path(path).read_bytes()
    before, started = memory_mib("VmHWM"), time.thread_time()
    pixels = decode(encoded, TRANSFORM, limits)
    return pixels, Cost(time.thread_time() - started, memory_mib("VmHWM") - before)


def cost(encoded: bytes, limits: ImageLimits) -> tuple[Pixels, Cost]:
    """Decode a photo; return its pixels and what that took."""
    with (
        tempfile.NamedTemporaryFile(suffix=".jpg") as file,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
    ):
        file.write(encoded)
        file.flush()
        return process.submit(measure, file.name, limits).result()


def networks() -> dict[str, Embed]:
    """Return what embeds, by what it is."""
    torch.manual_seed(0)
    plain = resnet50(weights=None).eval()
    trained, _ = digits.backbone("random")
    data = digits.digits()
    digits.calibrate(trained, digits.prepare(data.train[:256], digits.transform_of(data.train, 96)))

    def embedding(model: torch.nn.Module) -> Embed:
        preset = TRANSFORM

        def embed(pixels: Pixels) -> NDArray[np.float32]:
            mean, std = (np.asarray(one, np.float32) for one in (preset.mean, preset.std))
            scaled = (pixels / np.float32(255) - mean) / std
            batch = torch.from_numpy(scaled.transpose(2, 0, 1)[None].astype(np.float32))
            found: NDArray[np.float32] = digits.embed(model, batch)[0]
            return found

        return embed

    return {"random weights": embedding(plain), "digits' backbone": embedding(trained)}


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the cosine of two embeddings."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def distance(one: Pixels, other: Pixels) -> str:
    """Return by how many levels pixels differ: on average, 99% of them, all."""
    apart = np.abs(one.astype(np.int16) - other)
    return f"{apart.mean():.2f} / {np.percentile(apart, 99):.0f} / {apart.max()}"


def sizes(megapixels: list[int], rounds: int, embed: dict[str, Embed]) -> list[str]:
    """Return the table of photos by their size."""
    lines = [
        "| photo | file | decoded at | time, exact → scaled | peak memory, exact → scaled |"
        " levels apart: mean / 99% / most | cosine: " + ", ".join(embed) + " |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in megapixels:
        width, height = SIDES[size]
        for source in PHOTOS:
            encoded = large_photo(source, width, height)
            costs: dict[str, list[Cost]] = {"exact": [], "scaled": []}
            pixels = {}
            for _ in range(rounds):
                for name, limits in (("exact", EXACT), ("scaled", SCALED)):
                    pixels[name], took = cost(encoded, limits)
                    costs[name].append(took)
            exact, scaled = (
                Cost(*(statistics.median(values) for values in zip(*each, strict=True)))
                for each in costs.values()
            )
            part = jpeg.fraction((height, width), TRANSFORM.resized(height, width))
            cosines = ", ".join(
                f"{cosine(one(pixels['exact']), one(pixels['scaled'])):.5f}"
                for one in embed.values()
            )
            lines.append(
                f"| {source.stem}, {width} x {height} | {len(encoded) / 2**20:.1f} MiB | 1/{part} |"
                f" {exact.seconds * 1e3:.0f} → {scaled.seconds * 1e3:.0f} ms"
                f" ({exact.seconds / scaled.seconds:.1f} x) | {exact.mib:.0f} →"
                f" {scaled.mib:.0f} MiB ({exact.mib / max(scaled.mib, 0.1):.0f} x) |"
                f" {distance(pixels['exact'], pixels['scaled'])} | {cosines} |"
            )
            print(lines[-1], flush=True)
    return lines


def multiples(embed: dict[str, Embed]) -> list[str]:
    """Return the table of distances by how much larger the scaled image is than the resized."""
    lines = [
        "| scaled ÷ resized short side | " + " | ".join(f"1/{part}" for part in (2, 4, 8)) + " |",
        "|---|---|---|---|",
    ]
    for multiple in MULTIPLES:
        cells = []
        for part in (2, 4, 8):
            assert isinstance(TRANSFORM.resize, int)
            short = int(part * multiple * TRANSFORM.resize)
            levels, cosines = [], []
            for source in PHOTOS:
                encoded = large_photo(source, short * 4 // 3, short)
                exact = decode(encoded, TRANSFORM, EXACT)
                small = jpeg.decode_jpeg(encoded, (short, short * 4 // 3), part)
                assert small is not None
                scaled = resize_and_crop(small, TRANSFORM)
                apart = np.abs(exact.astype(np.int16) - scaled)
                levels.append((float(apart.mean()), int(apart.max())))
                cosines += [cosine(one(exact), one(scaled)) for one in embed.values()]
            mean, most = max(levels)[0], max(most for _, most in levels)
            cells.append(f"{mean:.2f}, most {most}; {min(cosines):.5f}")
        lines.append(f"| {multiple:g} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def answers() -> str:
    """Return how often a trained network answers otherwise: digits as large JPEGs."""
    data = digits.digits()
    model, _ = digits.backbone("random")
    preset = digits.transform_of(data.train, 48)
    train = digits.prepare(data.train, preset)
    digits.calibrate(model, train)
    digits.fit_head(model, digits.embed(model, train), data.train_labels)
    transform = Transform.of(preset)
    mean, std = (np.asarray(one, np.float32) for one in (transform.mean, transform.std))

    @torch.inference_mode()
    def classify(found: list[Pixels]) -> NDArray[np.int64]:
        normal = (np.stack(found) / np.float32(255) - mean) / std
        batch = torch.from_numpy(normal.transpose(0, 3, 1, 2).astype(np.float32))
        classes: NDArray[np.int64] = model(batch).argmax(dim=1).numpy()
        return classes

    found: dict[str, list[Pixels]] = {"exact": [], "scaled": []}
    for image in data.held_out:
        out = io.BytesIO()
        image.convert("RGB").resize((1200, 1200), Image.Resampling.BICUBIC).save(out, "JPEG")
        for name, limits in (("exact", EXACT), ("scaled", SCALED)):
            found[name].append(decode(out.getvalue(), transform, limits))
    exact, scaled = (classify(pixels) for pixels in found.values())
    right = (exact == data.held_out_labels).mean(), (scaled == data.held_out_labels).mean()
    return (
        f"{len(exact)} held-out digits as JPEGs of 1200 x 1200: {100 * right[0]:.2f}% right decoded"
        f" exactly, {100 * right[1]:.2f}% at 1/8; {int((exact != scaled).sum())} answers differ."
    )


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megapixels", type=int, nargs="+", default=[12, 50, 108])
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many")
    parser.add_argument("--write", action="store_true", help="into docs/reference/formats.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    embed = networks()
    lines = [page.where(), "", *sizes(options.megapixels, options.rounds, embed), ""]
    pictures = [decode(path.read_bytes(), TRANSFORM, EXACT) for path in PHOTOS]
    unlike = ", ".join(f"{cosine(*map(one, pictures)):.3f}" for one in embed.values())
    lines += [f"For comparison, the cosine of the two photos to each other: {unlike}.", ""]
    lines += ["Mean and most levels apart, and the lowest cosine:", "", *multiples(embed), ""]
    lines.append(answers())
    print("\n".join(lines))
    if options.write:
        page.write("large-photos", "\n".join(lines), PAGE)


if __name__ == "__main__":
    main()
