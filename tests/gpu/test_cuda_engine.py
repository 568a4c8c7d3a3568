"""The CUDA engine on a device: graphs against eager kernels, and against torchvision on the CPU.

Written on a machine without CUDA, where they are skipped: they have never run. Tolerances are those
of test_torch_engine_cuda.py, and have the same origin.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_server.engines.cuda.device import CudaDevice
from resnet50_server.engines.cuda.engine import CAPTURED_TOP_K, CudaEngine
from resnet50_server.engines.torch_engine import TorchEngine
from resnet50_server.images.transform import Transform
from resnet50_server.variants.network import Network, fold_batchnorm
from tests.support import weights
from tests.support.serving import connected, engines_of, serving

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1200),
    # Warnings of the compiler and of torch are allowed.
    pytest.mark.filterwarnings("default"),
]

TRANSFORM = Transform.of(ResNet50_Weights.DEFAULT.transforms())
CATEGORIES = 1000
MAX_BATCH = 12  # buckets 1, 2, 4, 8, 12
BATCHES = 10_000

# Probability, cosine.
TOLERANCES = {"fp32": (1e-4, 0.9999), "fp16": (0.08, 0.9995), "bf16": (0.3, 0.993)}


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    """`MAX_BATCH` photos as engines get them: uint8 [224, 224, 3]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TRANSFORM.mean, TRANSFORM.std))
    levels = ((weights.photos() * std + mean) * 255).round().to(torch.uint8)
    photos = [np.ascontiguousarray(one) for one in levels.permute(0, 2, 3, 1).numpy()]
    mirrored = [np.ascontiguousarray(one[:, ::-1]) for one in photos]
    return ((photos + mirrored) * MAX_BATCH)[:MAX_BATCH]


def reference(seed: int, pixels: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """torchvision's probabilities and embeddings, in fp32 on the CPU."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TRANSFORM.mean, TRANSFORM.std))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    model = weights.torchvision_model(weights.trained_like(seed))
    return weights.run(model, (images.float() / 255 - mean) / std)


@pytest.fixture(scope="module")
def references(pixels) -> dict[int, tuple[Tensor, Tensor]]:
    return {seed: reference(seed, pixels) for seed in (0, 1)}


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return CudaDevice(0)


@pytest.fixture
def build(device) -> Iterator:
    """Give what builds engines, and close them afterwards."""
    built: list[CudaEngine] = []

    def build(seed: int = 0, precision: str = "fp16", **options) -> CudaEngine:
        options = {"max_batch_size": MAX_BATCH, "compile_network": False} | options
        built.append(CudaEngine(network(seed), TRANSFORM, device, precision, **options))
        return built[-1]

    yield build
    for engine in built:
        engine.close()


def network(seed: int = 0) -> Network:
    model = weights.torchvision_model(weights.trained_like(seed))
    fold_batchnorm(model)
    return Network(model)


def answers(engine, images: list[np.ndarray], top_k: int = CATEGORIES) -> tuple[Tensor, Tensor]:
    """Return probabilities [N, categories] by index, 0 where not asked for; embeddings."""
    output = engine.run(images, top_k, True)
    found = torch.zeros(len(images), CATEGORIES)
    found.scatter_(1, torch.from_numpy(output.indices), torch.from_numpy(output.probabilities))
    return found, torch.from_numpy(output.embeddings)


def close(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], precision: str) -> None:
    probability, cosine = TOLERANCES[precision]
    assert (ours[0] - theirs[0]).abs().max() < probability
    assert torch.cosine_similarity(ours[1], theirs[1]).min() > cosine


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_every_batch_size_is_answered_as_torchvision(build, pixels, references, precision):
    engine = build(precision=precision)
    assert engine.captured
    for count in range(1, MAX_BATCH + 1):
        wanted = tuple(one[:count] for one in references[0])
        close(answers(engine, pixels[:count]), wanted, precision)


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_graph_answers_as_the_kernels_it_was_captured_from(build, pixels, precision):
    graphs, kernels = build(precision=precision), build(precision=precision, capture=False)
    assert graphs.captured
    assert not kernels.captured
    for count in (1, 3, MAX_BATCH):
        close(answers(graphs, pixels[:count]), answers(kernels, pixels[:count]), precision)


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_compiled_network_answers_as_torchvision(build, pixels, references, precision):
    engine = build(precision=precision, compile_network=True, buckets=[1, MAX_BATCH])
    assert engine.compiled
    assert engine.captured
    close(answers(engine, pixels), references[0], precision)
    close(answers(engine, pixels[:1]), tuple(one[:1] for one in references[0]), precision)


def test_compiled_engine_matches_the_eager_engine(build, pixels):
    ours = build(precision="fp32", compile_network=True, buckets=[4])
    eager = TorchEngine(network(), TRANSFORM, torch.device("cuda:0"), "fp32")
    close(answers(ours, pixels[:4]), answers(eager, pixels[:4]), "fp32")
    eager.close()


@pytest.mark.parametrize("top_k", [1, CAPTURED_TOP_K, CAPTURED_TOP_K + 1, 100])
def test_categories_come_by_falling_probability_however_many(build, pixels, references, top_k):
    output = build(precision="fp32").run(pixels[:3], top_k, False)
    expected = references[0][0][:3].topk(top_k, dim=1).values.numpy()
    assert output.embeddings is None
    assert np.abs(output.probabilities - expected).max() < 1e-4
    assert (np.diff(output.probabilities, axis=1) <= 0).all()


def test_two_variants_on_two_threads_match_each_alone(build, pixels, references):
    engines = {seed: build(seed) for seed in (0, 1)}
    failures: list[BaseException] = []

    def serve(thread: int) -> None:
        try:
            random = np.random.default_rng(thread)
            for _ in range(300):
                seed, count = int(random.integers(2)), int(random.integers(1, MAX_BATCH + 1))
                first = int(random.integers(MAX_BATCH - count + 1))
                batch = pixels[first : first + count]
                wanted = tuple(one[first : first + count] for one in references[seed])
                close(answers(engines[seed], batch), wanted, "fp16")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_variant_answers_while_another_is_built_or_closed(build, pixels, references, device):
    served = build(0)
    stop = threading.Event()
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            while not stop.is_set():
                close(answers(served, pixels[:5]), tuple(r[:5] for r in references[0]), "fp16")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(3):
            other = CudaEngine(
                network(1), TRANSFORM, device, "fp16", MAX_BATCH, compile_network=False
            )
            close(answers(other, pixels), references[1], "fp16")
            other.close()
    finally:
        stop.set()
        thread.join()
    assert not failures
    close(answers(served, pixels), references[0], "fp16")


def test_time_is_the_devices_and_grows_with_the_batch(build, pixels):
    engine = build(precision="fp32", max_batch_size=256, buckets=[1])
    images = (pixels * 256)[:256]
    assert 0 < engine.run(images[:1], 1, False).compute_s < engine.run(images, 1, True).compute_s


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_does_not_grow_over_ten_thousand_batches(build, pixels):
    engine = build()

    def run(batches: int) -> tuple[int, int, int]:
        random = np.random.default_rng(0)
        for _ in range(batches):
            count = int(random.integers(1, MAX_BATCH + 1))
            engine.run(pixels[:count], int(random.choice([0, 5, 100])), bool(random.integers(2)))
        gc.collect()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), resident_bytes()

    allocated, reserved, resident = run(500)
    allocated_later, reserved_later, resident_later = run(BATCHES)
    assert allocated_later == allocated
    assert reserved_later == reserved
    assert resident_later - resident < 32 * 2**20


def test_last_engine_to_leave_frees_the_devices_memory(pixels):
    gc.collect()
    before = torch.cuda.memory_allocated()
    device = CudaDevice(0)
    engines = [
        CudaEngine(network(seed), TRANSFORM, device, "fp16", 4, compile_network=False)
        for seed in (0, 1)
    ]
    engines[0].close()
    assert engines[1].run(pixels[:1], 1, False).indices.shape == (1, 1)
    engines[1].close()
    gc.collect()
    # cuBLAS keeps its workspaces, one per stream: tens of MB, not the networks' 100.
    assert torch.cuda.memory_allocated() - before < 96 * 2**20
    # And the device takes new ones.
    again = CudaEngine(network(), TRANSFORM, device, "fp16", 4, compile_network=False)
    assert again.run(pixels[:1], 1, False).indices.shape == (1, 1)
    again.close()


def test_memory_of_all_buckets_is_near_that_of_the_largest(pixels):
    def reserved(buckets: list[int] | None) -> int:
        device = CudaDevice(0)
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        engine = CudaEngine(
            network(), TRANSFORM, device, "fp16", 64, buckets=buckets, compile_network=False
        )
        torch.cuda.empty_cache()
        taken = torch.cuda.memory_reserved() - before
        engine.close()
        return taken

    reserved([])  # what libraries allocate once
    largest = reserved([])
    assert reserved(None) <= 1.3 * largest


async def test_server_serves_variants_with_graphs(tmp_path, pixels):
    directory = weights.custom_variant(
        tmp_path / "one", weights.trained_like(0), CATEGORIES, transform=weights.TRANSFORM
    )
    async with (
        serving(
            variants=[f"one={directory}", "two=random:1"],
            engine="auto",
            device="cuda:0",
            precision="fp32",
            max_batch_size=4,
        ) as server,
        connected(server) as channel,
    ):
        assert all(isinstance(engine, CudaEngine) for engine in engines_of(server))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        raw = image_pb2.RawImage(
            width=224,
            height=224,
            pixel_format=image_pb2.PIXEL_FORMAT_RGB,
            pixels=pixels[0].tobytes(),
        )
        request = inference_pb2.ClassifyRequest(image=image_pb2.Image(raw=raw))
        replies = await asyncio.gather(*(stub.Classify(request) for _ in range(16)))
    expected = reference(0, pixels[:1])[0][0].max(dim=0)
    for reply in replies:
        best = reply.classification.categories[0]
        assert best.index == int(expected.indices)
        assert abs(best.probability - float(expected.values)) < 1e-3
