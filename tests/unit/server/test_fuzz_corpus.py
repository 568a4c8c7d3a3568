"""The fuzzing corpus and its seeds keep the promises."""

from __future__ import annotations

import pytest

from fuzz import calls, seed_images, seeds, targets
from fuzz.run import inputs
from fuzz.targets import TARGETS, Finding, checked
from resnet50_server.errors import InvalidImage, InvalidRequest
from resnet50_server.images import decode
from resnet50_server.images import raw as pixels
from resnet50_server.inference.admission import Permit
from tests.support.pictures import encode, picture

CORPUS = targets.ROOT / "fuzz" / "corpus"
SEEDS = inputs()
EMBED = calls.call_bytes(*seeds.calls()["Embed"][0])


@pytest.fixture(scope="module", autouse=True)
def servicers():
    """The servicers that calls go to, until this module's tests are over."""
    yield
    targets.stop_calls()


@pytest.mark.parametrize("name", TARGETS)
def test_corpus_keeps_the_promises(name):
    kept = sorted((CORPUS / name).iterdir())
    assert kept
    for path in kept:
        try:
            checked(TARGETS[name], path.read_bytes())
        except Exception as error:
            raise AssertionError(f"python -m fuzz.run {name} --repeat {path}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_begins_with_keeps_the_promises(name):
    for content in SEEDS[name]:
        checked(TARGETS[name], content)


def test_sound_images_are_decoded():
    """Else the mutations of them would never get far."""
    refused = []
    for name, content in seed_images.images().items():
        try:
            decode.decode(content, targets.TRANSFORM, targets.LIMITS)
        except InvalidImage:
            refused.append(name)
    larger = ["avif of a larger picture", "heic of a larger picture"]
    assert refused == ["gif of a corner", *larger, "tiff floats"]


# Each promise, broken: fuzzing that could not fail would find nothing either.


def raises(*_, **__):
    raise RuntimeError("not a refusal")


@pytest.mark.parametrize("step", ["decode_file", "resize_and_crop"])
def test_error_that_is_no_refusal_is_found(monkeypatch, step):
    monkeypatch.setattr(decode, step, raises)
    with pytest.raises(RuntimeError):
        checked(targets.images, encode(picture()))


def test_refused_upload_of_a_sound_image_is_found(monkeypatch):
    def refuse(*_):
        raise InvalidImage("image.encoded", "declares too much")

    monkeypatch.setattr(targets, "check_header", refuse)
    with pytest.raises(Finding, match="decoded, and yet refused"):
        checked(targets.images, encode(picture()))


def test_memory_beyond_the_bound_is_found(monkeypatch):
    peaks = iter([2**30, 2**30 + 100 * 2**20])
    monkeypatch.setattr(targets, "peak_bytes", lambda: next(peaks))
    with pytest.raises(Finding, match="bytes of memory"):
        checked(targets.images, encode(picture()))


def test_rows_beyond_the_pixels_are_not_read(monkeypatch):
    raw = next(
        message for name, message in seed_images.raw_images().items() if "NV12 padded" in name
    )
    # A layout that no other test has: checked ones are remembered.
    raw.row_stride_bytes = raw.width + 2
    monkeypatch.setattr(pixels, "lengths", lambda _: (10**6, 0))
    with pytest.raises(ValueError, match="size of buffer"):
        checked(targets.raw, targets.raw_bytes(raw, lie=-30))


def test_call_that_meets_a_fault_is_found(monkeypatch):
    monkeypatch.setattr("resnet50_server.api.inference_service.parse_image", raises)
    with pytest.raises(Finding, match="INTERNAL"):
        checked(targets.calls, EMBED)


def test_refusal_without_a_field_is_found(monkeypatch):
    monkeypatch.setattr(InvalidRequest, "__str__", lambda _: "no")
    with pytest.raises(Finding, match="names no field"):
        checked(targets.calls, calls.call_bytes(seeds.INFERENCE + "Embed", [b""]))


def test_call_that_keeps_its_place_is_found(monkeypatch):
    monkeypatch.setattr(calls, "SETTLED_S", 0.1)
    monkeypatch.setattr(Permit, "release", lambda _: None)
    monkeypatch.setattr(Permit, "__exit__", lambda *_: None)
    try:
        with pytest.raises(Finding, match="still inside"):
            checked(targets.calls, EMBED)
    finally:
        targets.stop_calls()  # the place stays taken
