"""Variants that change while a server serves them: their files, calls and streams."""

from __future__ import annotations

from resnet50.v1 import image_pb2, inference_pb2, variant_pb2
from tests.support.administering import ADMIN, IMAGE
from tests.support.pictures import encode, photo_like
from tests.support.weights import calm, custom_variant

# Small images: what is tested is which weights answer, not how fast.
SMALL = {"resize": 64, "crop": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CATEGORIES = 10
REAL = {"engine": "torch", "variants": ["untrained=random:0"], "max_batch_size": 4}
PICTURES = [image_pb2.Image(encoded=encode(photo_like(80, 70, seed))) for seed in range(3)]


def put(folder, name: str, seed: int):
    """Put weights into a folder as one should: beside, then in their place at once."""
    beside, state = folder.parent / "new" / name, dict(calm(1, CATEGORIES))
    # Other weights, made fast: the categories trade places.
    for key in ("fc.weight", "fc.bias"):
        state[key] = state[key].roll(seed, 0).clone()
    custom_variant(beside, state, CATEGORIES, transform=SMALL)
    (folder / name).mkdir(parents=True, exist_ok=True)
    for path in beside.iterdir():
        path.replace(folder / name / path.name)
    return folder / name


async def replace(admin, name: str) -> variant_pb2.LoadVariantResponse:
    request = variant_pb2.LoadVariantRequest(name=name, replace=True)
    return await admin.variants.LoadVariant(request, metadata=admin.token())


async def set_default(admin, name: str, token: str = ADMIN):
    request = variant_pb2.SetDefaultVariantRequest(name=name)
    return await admin.variants.SetDefaultVariant(request, metadata=admin.token(token))


async def listed(admin) -> list[variant_pb2.Variant]:
    request = variant_pb2.ListVariantsRequest()
    return list((await admin.variants.ListVariants(request, metadata=admin.token())).variants)


def ask(admin, image: image_pb2.Image, variant: str):
    options = inference_pb2.ClassifyOptions(variant=variant, top_k=1)
    request = inference_pb2.ClassifyRequest(options=options, image=image)
    return admin.inference.Classify(request, metadata=admin.token())


def told(reply) -> tuple[int, float]:
    category = reply.classification.categories[0]
    return category.index, round(category.probability, 3)


async def open_stream(admin, variant: str):
    stream = admin.inference.ClassifyStream(metadata=admin.token())
    options = inference_pb2.ClassifyOptions(variant=variant, top_k=1)
    config = inference_pb2.ClassifyStreamConfig(options=options)
    await stream.write(inference_pb2.ClassifyStreamRequest(config=config))
    return stream


async def send(stream, frame_id: int, image: image_pb2.Image = IMAGE) -> None:
    frame = inference_pb2.Frame(frame_id=frame_id, image=image)
    await stream.write(inference_pb2.ClassifyStreamRequest(frame=frame))
