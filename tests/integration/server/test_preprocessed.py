"""Preprocessed images in every RPC of a real server, and in its traffic splits."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc, variant_pb2, variant_pb2_grpc
from tests.support.administering import ADMIN, administered, describe, refused
from tests.support.pictures import encode, picture
from tests.support.serving import DECODING, computed, connected, serving, until_result

PNG = image_pb2.Image(encoded=encode(picture()))
METADATA = (("authorization", f"Bearer {ADMIN}"), ("x-caller-key", "a"))
NORMAL = {"mean": [0.5] * 3, "std": [0.25] * 3}
SAME = {"resize": 232, "crop": 224, **NORMAL}
OTHER = {"resize": 64, "crop": 56, **NORMAL}


async def transform_of(channel: grpc.aio.Channel, name: str = "") -> variant_pb2.Transform:
    stub = variant_pb2_grpc.VariantServiceStub(channel)
    reply = await stub.GetVariant(variant_pb2.GetVariantRequest(name=name), metadata=METADATA)
    return reply.variant.transform


def image(transform: variant_pb2.Transform, seed: int = 0) -> image_pb2.Image:
    size = (transform.input_size.height, transform.input_size.width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    fields = image_pb2.PreprocessedImage(pixels=pixels.tobytes(), transform_digest=transform.digest)
    return image_pb2.Image(preprocessed=fields)


def classify(one: image_pb2.Image, **options):
    return inference_pb2.ClassifyRequest(
        options=inference_pb2.ClassifyOptions(**options), image=one
    )


async def stream(stub, *images: image_pb2.Image, **options) -> list:
    call = stub.ClassifyStream(metadata=METADATA)
    config = inference_pb2.ClassifyStreamConfig(options=inference_pb2.ClassifyOptions(**options))
    await call.write(inference_pb2.ClassifyStreamRequest(config=config))
    for number, one in enumerate(images):
        frame = inference_pb2.Frame(frame_id=number, image=one)
        await call.write(inference_pb2.ClassifyStreamRequest(frame=frame))
    await call.done_writing()
    return [reply async for reply in call]


async def test_get_variant_describes_digest_and_jpeg_limit():
    async with serving(exact_jpeg_pixels=1_000_000) as server, connected(server) as channel:
        transform = await transform_of(channel)
    assert len(transform.digest) == 64
    assert transform.exact_jpeg_pixels == 1_000_000


async def test_images_of_a_batch_fail_alone():
    async with serving(**DECODING) as server, connected(server) as channel:
        transform = await transform_of(channel)
        wrong = image(transform)
        wrong.preprocessed.pixels += b"x"
        foreign = image(transform)
        foreign.preprocessed.transform_digest = "0" * 64
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        images = [image(transform), wrong, PNG, foreign, image(transform, 1)]
        reply = await stub.ClassifyBatch(inference_pb2.ClassifyBatchRequest(images=images))
    kinds = [one.WhichOneof("outcome") for one in reply.results]
    assert kinds == ["classification", "error", "classification", "error", "classification"]
    codes = [reply.results[index].error.code for index in (1, 3)]
    assert codes == [
        grpc.StatusCode.INVALID_ARGUMENT.value[0],
        grpc.StatusCode.FAILED_PRECONDITION.value[0],
    ]


async def test_mismatch_tells_programs_the_expected_digest():
    async with serving(**DECODING) as server, connected(server) as channel:
        transform = await transform_of(channel)
        foreign = image(transform)
        foreign.preprocessed.transform_digest = "0" * 64
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failed:
            await stub.Classify(classify(foreign))
    details = dict(failed.value.trailing_metadata())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert any(one.Unpack(info) for one in status_pb2.Status.FromString(details).details)
    assert info.reason == "TRANSFORM_MISMATCH"
    assert info.metadata["transform_digest"] == transform.digest


async def test_no_refused_image_reaches_the_engine():
    async with serving(**DECODING) as server, connected(server) as channel:
        batches, transform = computed(server), await transform_of(channel)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        good = image(transform).preprocessed
        for code, pixels, digest, options in (
            ("INVALID_ARGUMENT", b"", good.transform_digest, {}),
            ("INVALID_ARGUMENT", good.pixels, "", {}),
            ("INVALID_ARGUMENT", good.pixels[:-3], good.transform_digest, {}),
            ("INVALID_ARGUMENT", good.pixels * 20, good.transform_digest, {}),
            ("FAILED_PRECONDITION", good.pixels, "0" * 64, {}),
            ("FAILED_PRECONDITION", good.pixels, "\n" * 4096, {}),
            ("INVALID_ARGUMENT", good.pixels, good.transform_digest, {"background": "white"}),
        ):
            fields = image_pb2.PreprocessedImage(pixels=pixels, transform_digest=digest)
            with refused(code, "preprocessed"):
                await stub.Classify(classify(image_pb2.Image(preprocessed=fields), **options))
        assert batches == []
        await stub.Classify(classify(image_pb2.Image(preprocessed=good)))
        assert list(map(len, batches)) == [1]


def parts(pixels: bytes, digest: str, **options) -> list:
    wanted = inference_pb2.ClassifyUploadOptions(transform_digest=digest, **options)
    part = inference_pb2.ClassifyUploadRequest
    chunks = [pixels[at : at + 50_000] for at in range(0, len(pixels), 50_000)]
    return [part(options=wanted), *(part(chunk=chunk) for chunk in chunks)]


async def test_upload_takes_preprocessed_pixels():
    async with serving(**DECODING) as server, connected(server) as channel:
        batches, transform = computed(server), await transform_of(channel)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        good = image(transform).preprocessed
        pixels, digest = good.pixels, good.transform_digest
        await stub.ClassifyUpload(iter(parts(pixels, digest)))
        for code, sent, text in (
            ("INVALID_ARGUMENT", parts(pixels[:-1], digest), "has 150527 bytes"),
            ("INVALID_ARGUMENT", parts(b"", digest), "has 0 bytes"),
            ("INVALID_ARGUMENT", parts(pixels + b"x", digest), "has more than the 150528 bytes"),
            # Refused before the first chunk.
            ("FAILED_PRECONDITION", parts(b"", "0" * 64), "options.transform_digest"),
            (
                "INVALID_ARGUMENT",
                parts(b"", digest, raw=image_pb2.RawImage(width=1, height=1, pixel_format=1)),
                "options.transform_digest",
            ),
            (
                "INVALID_ARGUMENT",
                parts(
                    pixels,
                    digest,
                    options=inference_pb2.ClassifyOptions(background="white"),
                ),
                "options.background",
            ),
        ):
            with refused(code, text):
                await stub.ClassifyUpload(iter(sent))
    ((seen,),) = batches
    assert seen.tobytes() == pixels


class Split:
    """A server with a variant `one`, whose only caller is the canary of a candidate `two`."""

    def __init__(self, folder: Path, candidate: dict) -> None:
        self._folder = folder / "variants"
        self._names = []
        for name, transform in (("one", SAME), ("two", candidate)):
            describe(folder / name, transform=transform)
            self._names.append(f"{name}={folder / name}")
        self._folder.mkdir()

    async def __aenter__(self) -> Split:
        self._server = administered(self._folder, variants=self._names, **DECODING)
        server = await self._server.__aenter__()
        self._channel = connected(server)
        channel = await self._channel.__aenter__()
        self.variants = variant_pb2_grpc.VariantServiceStub(channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.image = image(await transform_of(channel, "one"))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.__aexit__(*error)
        await self._server.__aexit__(*error)

    async def set(self, **shares: float) -> None:
        message = variant_pb2.TrafficSplit(variant="one", candidate="two", **shares)
        request = variant_pb2.SetTrafficSplitRequest(split=message)
        await self.variants.SetTrafficSplit(request, metadata=METADATA)

    async def report(self) -> variant_pb2.TrafficReport:
        request = variant_pb2.ListTrafficSplitsRequest()
        (report,) = (await self.variants.ListTrafficSplits(request, metadata=METADATA)).reports
        return report

    async def names(self, *images: image_pb2.Image) -> list[str]:
        """Return the variants that compute the images as calls, as a batch and on a stream."""
        options = inference_pb2.ClassifyOptions(top_k=1)
        calls = [
            self.inference.Classify(classify(one, top_k=1), metadata=METADATA) for one in images
        ]
        found = [(await call).variant.name for call in calls]
        request = inference_pb2.ClassifyBatchRequest(options=options, images=images)
        reply = await self.inference.ClassifyBatch(request, metadata=METADATA)
        assert all(one.WhichOneof("outcome") == "classification" for one in reply.results)
        for one, expected in zip(images, list(found), strict=True):
            if one.HasField("preprocessed"):
                fields = one.preprocessed
                upload = parts(fields.pixels, fields.transform_digest, options=options)
                reply = await self.inference.ClassifyUpload(iter(upload), metadata=METADATA)
                assert reply.variant.name == expected
        reply = await self.inference.ClassifyBatch(request, metadata=METADATA)
        frames = await stream(self.inference, *images, top_k=1)
        return [*found, reply.variant.name, *(one.variant.name for one in frames)]


async def test_candidate_of_the_same_transform_computes_them(tmp_path):
    async with Split(tmp_path, SAME | {"mean": [0.4] * 3}) as split:
        await split.set(canary_percent=100.0)
        assert set(await split.names(split.image, PNG)) == {"two"}


async def test_variant_computes_them_if_the_candidate_cannot(tmp_path):
    async with Split(tmp_path, OTHER) as split:
        await split.set(canary_percent=100.0)
        assert await split.names(PNG, split.image, PNG) == [
            *("two", "one", "two"),
            "one",  # a batch is computed by one variant
            *("two", "one", "one"),  # a stream stays with the variant that it has changed to
        ]
        report = await split.report()
    assert report.variant_answers.failed == report.candidate_answers.failed == 0
    assert (report.variant_answers.answered, report.candidate_answers.answered) == (10, 3)


@pytest.mark.parametrize("same", [True, False])
async def test_shadow_skips_them_if_the_candidate_cannot(tmp_path, same):
    async with Split(tmp_path, SAME if same else OTHER) as split:
        await split.set(shadow_percent=100.0)
        call = split.inference.Classify(classify(split.image, top_k=1), metadata=METADATA)
        assert (await call).variant.name == "one"
        report = await until_result(
            split.report, lambda report: report.skipped or report.comparison.images
        )
    assert (report.comparison.images, report.skipped, report.failed) == (
        (1, 0, 0) if same else (0, 1, 0)
    )
