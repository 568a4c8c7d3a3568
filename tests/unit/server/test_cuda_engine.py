"""The CUDA engine's own logic, on the CPU (host_device.py); tests/gpu has what needs a device."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import ResNet, ResNet50_Weights
from torchvision.models.resnet import Bottleneck

from resnet50_server.engines.cuda import device as cuda_device
from resnet50_server.engines.cuda import engine as cuda_engine
from resnet50_server.engines.cuda.device import Slot
from resnet50_server.engines.cuda.engine import CAPTURED_TOP_K, CudaEngine
from resnet50_server.engines.cuda.forward import Forward, Outputs
from resnet50_server.engines.cuda.output_layout import ALIGNMENT, OutputLayout
from resnet50_server.engines.reference_check import ReferenceOutput
from resnet50_server.engines.torch_engine import TorchEngine
from resnet50_server.errors import WeightsError
from resnet50_server.images.transform import Transform
from resnet50_server.variants.network import Network, fold_batchnorm
from resnet50_server.variants.spec import parse_variant
from tests.support import weights
from tests.support.host_device import HostDevice
from tests.support.pictures import photo_like

# Small, so that many batches are quick; nothing in the engine knows the size of an image.
TRANSFORM = Transform(resize=64, crop=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CATEGORIES = 40


def network(seed: int = 0) -> Network:
    model = weights.torchvision_model(weights.trained_like(seed, CATEGORIES))
    fold_batchnorm(model)
    return Network(model)


def engine(device: HostDevice | None = None, **options: Any) -> CudaEngine:
    options = {"compile_network": False, "max_batch_size": 4, "precision": "fp32"} | options
    net = options.pop("network", None) or network()
    return CudaEngine(net, TRANSFORM, device or HostDevice(), **options)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TRANSFORM.mean, TRANSFORM.std))
    levels = ((weights.photos() * std + mean) * 255).round().to(torch.uint8)
    small = levels[:, :, 40:104, 40:104].permute(0, 2, 3, 1)
    return [np.ascontiguousarray(one) for one in small.numpy()]


@pytest.fixture(scope="module")
def reference() -> TorchEngine:
    return TorchEngine(network(), TRANSFORM, torch.device("cpu"), "fp32")


def same(output, expected, tolerance: float = 1e-5) -> None:
    assert np.array_equal(output.indices, expected.indices)
    assert np.abs(output.probabilities - expected.probabilities).max(initial=0) < tolerance
    assert (output.embeddings is None) == (expected.embeddings is None)
    if output.embeddings is not None:
        assert np.allclose(output.embeddings, expected.embeddings, rtol=1e-4, atol=1e-5)


def test_slot_that_cannot_grow_stays_whole(monkeypatch):
    real = torch.empty

    def empty(size, *, device="cpu", pin_memory=False, dtype):
        if device == "cuda" and size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(size, dtype=dtype)

    monkeypatch.setattr(cuda_device, "new_event", lambda **_: None)
    monkeypatch.setattr(torch, "empty", empty)
    slot = Slot()
    slot.allocate(8, 8)
    with pytest.raises(torch.OutOfMemoryError):
        slot.allocate(16, 16)
    assert np.shares_memory(slot.pixels, slot.host_pixels.numpy())
    assert [one.numel() for one in (slot.host_pixels, slot.device_pixels, slot.answers)] == [8] * 3


def test_images_that_are_not_square_are_answered_as_by_the_eager_engine():
    wide = replace(TRANSFORM, resize=(48, 80), crop=None, input_range=(0, 255), std=(60, 58, 59))
    batch = [np.asarray(photo_like(80, 48, seed)) for seed in range(3)]
    expected = TorchEngine(network(), wide, torch.device("cpu"), "fp32").run(batch, 5, True)
    options = {"compile_network": False, "max_batch_size": 4, "precision": "fp32"}
    same(CudaEngine(network(), wide, HostDevice(), **options).run(batch, 5, True), expected)


def test_engine_answers_as_the_eager_one_at_every_size(images, reference):
    one = engine()
    for count in (4, 1, 3, 2):
        for top_k, with_embeddings in ((5, True), (1, False), (0, True)):
            output = one.run(images[:count], top_k, with_embeddings)
            expected = reference.run(images[:count], top_k, with_embeddings)
            assert output.indices.dtype == np.int64
            assert output.probabilities.dtype == np.float32
            assert output.indices.shape == output.probabilities.shape == (count, top_k)
            same(output, expected)


@pytest.mark.parametrize("top_k", [CAPTURED_TOP_K, CAPTURED_TOP_K + 1, CATEGORIES])
def test_top_k_beyond_the_captured_count_is_sorted(images, reference, top_k):
    same(engine().run(images[:3], top_k, False), reference.run(images[:3], top_k, False))


def test_variant_with_few_categories_is_served_whole(images):
    model = weights.torchvision_model(weights.trained_like(1, 3))
    fold_batchnorm(model)
    output = engine(network=Network(model)).run(images[:2], 3, False)
    assert np.allclose(output.probabilities.sum(axis=1), 1)


def test_bf16_is_as_far_from_fp32_as_the_eager_engine_in_bf16(images, reference):
    eager = TorchEngine(network(), TRANSFORM, torch.device("cpu"), "bf16")
    ours = engine(precision="bf16").run(images[:2], 1, True).embeddings
    theirs = eager.run(images[:2], 1, True).embeddings
    exact = reference.run(images[:2], 1, True).embeddings
    assert np.abs(ours - exact).max() <= 1.5 * np.abs(theirs - exact).max()
    assert np.abs(ours - exact).max() > 0


def test_answers_do_not_change_when_the_next_batch_is_computed(images):
    one = engine()
    first = one.run(images[:2], 5, True)
    kept = [first.indices.copy(), first.probabilities.copy(), first.embeddings.copy()]
    one.run(images[2:4], 5, True)
    one.run(images[2:4], CATEGORIES, True)
    for before, now in zip(
        kept, (first.indices, first.probabilities, first.embeddings), strict=True
    ):
        assert np.array_equal(before, now)


def test_rows_that_pad_a_bucket_do_not_reach_the_answers(images, reference):
    one = engine()
    one.run([np.full((64, 64, 3), 255, dtype=np.uint8)] * 4, 1, True)
    same(one.run(images[:3], 5, True), reference.run(images[:3], 5, True))


def test_padded_is_the_bucket():
    one = engine(max_batch_size=6, capture=False, buckets=[3])
    assert [one.padded(images) for images in range(1, 7)] == [3, 3, 3, 6, 6, 6]


@pytest.mark.parametrize("count", [0, 5])
def test_batch_of_a_size_that_was_not_prepared_is_refused(images, count):
    with pytest.raises(ValueError, match="prepared for 1 to 4"):
        engine().run((images * 2)[:count], 1, False)


def test_wrong_image_size_is_refused_and_its_slot_released(images):
    device = HostDevice(batches_in_flight=1)
    one = engine(device)
    with pytest.raises(ValueError):
        one.run([np.zeros((64, 64, 1), dtype=np.uint8)], 1, False)
    assert one.run(images[:1], 1, False).indices.shape == (1, 1)


def test_failing_batch_gives_its_slot_back(images, monkeypatch):
    device = HostDevice(batches_in_flight=1)
    one = engine(device)

    def fail(*arguments) -> float:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="illegal"):
        patch.setattr(device, "run", fail)
        one.run(images[:1], 1, False)
    assert one.run(images[:1], 1, False).indices.shape == (1, 1)


def test_two_variants_share_a_device_from_two_threads(images):
    device = HostDevice()
    engines = [engine(device, network=network(seed)) for seed in (0, 1)]
    expected = [[one.run([image], 5, True) for image in images] for one in engines]
    assert not np.allclose(expected[0][0].embeddings, expected[1][0].embeddings)
    failures: list[BaseException] = []

    def serve(seed: int) -> None:
        try:
            for turn in range(12):
                first = (turn + seed) % 3
                batch = images[first : first + 1 + turn % 3]
                output = engines[seed].run(batch, 5, True)
                for row in range(len(batch)):
                    alone = expected[seed][first + row]
                    assert np.allclose(output.embeddings[row], alone.embeddings[0], atol=1e-4)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_each_bucket_is_prepared_then_captured_largest_first(monkeypatch):
    device, order = HostDevice(), []
    capture = device.capture
    monkeypatch.setattr(
        device, "capture", lambda work: order.append(work.args[1].shape[0]) or (capture(work))
    )
    one = engine(device, max_batch_size=6)
    assert order == [6, 4, 2, 1]
    assert device.prepared == device.captures == 4
    assert one.captured


def test_engine_without_graphs_launches_kernels_one_by_one(images, reference, caplog):
    device = HostDevice()
    device.capture_error = RuntimeError("operation not permitted when stream is capturing")
    one = engine(device)
    assert not one.captured
    assert not one.compiled
    assert "cannot be captured" in caplog.text
    same(one.run(images[:3], 5, True), reference.run(images[:3], 5, True))


def test_engine_oom_while_building_leaves_the_device_usable():
    device = HostDevice()
    device.capture_error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        engine(device)
    assert device.engines == 0


def test_compiler_that_fails_leaves_pytorchs_own_kernels(images, reference, monkeypatch, caplog):
    def compiled(forward: Forward):
        def run(pixels: torch.Tensor) -> Outputs:
            raise RuntimeError("no C compiler")

        return run

    monkeypatch.setattr(cuda_engine, "compiled", compiled)
    device = HostDevice()
    one = engine(device, compile_network=True)
    assert not one.compiled
    assert one.captured
    assert device.captures == 3
    assert "cannot be compiled" in caplog.text
    same(one.run(images[:3], 5, True), reference.run(images[:3], 5, True))


def test_captured_function_compiles_for_every_bucket(images, monkeypatch):
    sizes: list[int] = []

    def count(module: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        sizes.append(next(one.shape[0] for one in inputs if one.dtype == torch.uint8))
        return module.forward

    compile_with = torch.compile

    def traced(forward, *, fullgraph, dynamic, options):
        assert options == {"triton.cudagraphs": False}
        return compile_with(forward, fullgraph=fullgraph, dynamic=dynamic, backend=count)

    monkeypatch.setattr(torch, "compile", traced)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # One block a layer: a quarter of what is traced ten times.
        model = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=CATEGORIES).eval()
    fold_batchnorm(model)
    buckets = range(1, 11)
    one = engine(
        network=Network(copy.deepcopy(model)),
        compile_network=True,
        max_batch_size=10,
        buckets=buckets,
    )
    assert one.compiled
    assert sizes == list(reversed(buckets))
    eager = TorchEngine(Network(model), TRANSFORM, torch.device("cpu"), "fp32")
    same(one.run(images[:3], 5, True), eager.run(images[:3], 5, True))


def test_int8_and_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match="use one of fp32, fp16, bf16"):
        engine(precision="int8")


def test_engine_is_closed_once():
    device = HostDevice()
    one, _other = engine(device), engine(device)
    one.close()
    one.close()
    assert device.engines == 1


def test_parts_of_a_layout_do_not_overlap_and_are_aligned():
    layout = OutputLayout(rows=3, top_k=5, dimension=7, categories=11)
    flat = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for number, part in enumerate(layout.tensor_views(flat)):
        assert part.storage_offset() * part.element_size() % ALIGNMENT == 0
        assert not part.any()
        part.fill_(number + 1)
    assert [part.unique().tolist() for part in layout.tensor_views(flat)] == [[1], [2], [3], [4]]


def test_only_wanted_answers_are_copied():
    layout = OutputLayout(rows=8, top_k=16, dimension=2048, categories=1000)
    top = layout.prefix_bytes(with_embeddings=False, with_probabilities=False)
    assert top == 8 * 16 * (8 + 4)
    assert layout.prefix_bytes(with_embeddings=True, with_probabilities=False) == top + 8 * 2048 * 4
    assert layout.prefix_bytes(with_embeddings=False, with_probabilities=True) == layout.nbytes


def test_official_transform_normalises_as_the_eager_engine():
    transform = Transform.of(ResNet50_Weights.DEFAULT.transforms())
    forward = Forward(network(), transform, 5)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    ours = pixels.permute(0, 3, 1, 2) * forward.scale + forward.shift
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    assert torch.allclose(ours, (pixels.permute(0, 3, 1, 2) / 255 - mean) / std, atol=1e-5)


def test_every_row_of_every_bucket_is_compared_with_pytorch(images, reference):
    """Each bucket is a graph of its own: one may be wrong, or mix rows up, and others be right."""
    found = reference.run(images[:2], CATEGORIES, True)
    probabilities = np.empty_like(found.probabilities)
    np.put_along_axis(probabilities, found.indices, found.probabilities, axis=1)
    reference = ReferenceOutput(images[:2], probabilities, found.embeddings)
    spec, one = parse_variant("IMAGENET1K_V2"), engine()
    assert one.sizes == (1, 2, 4)
    reference.check(one, spec, "fp32")
    run = one.run

    def break_row(broken: int, row: int) -> None:
        def run_or_break(batch, *arguments):
            output = run(batch, *arguments)
            if len(batch) == broken:
                output.embeddings[row] *= -1
            return output

        one.run = run_or_break

    for size in one.sizes:
        for row in range(size):
            break_row(size, row)
            with pytest.raises(WeightsError, match=f"in a batch of {size} its"):
                reference.check(one, spec, "fp32")

    def mix_up(batch, *arguments):
        return run(batch[::-1] if len(batch) == 4 else batch, *arguments)

    one.run = mix_up
    with pytest.raises(WeightsError, match="in a batch of 4 its"):
        reference.check(one, spec, "fp32")
