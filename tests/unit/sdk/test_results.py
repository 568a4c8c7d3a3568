"""Results as values: sequences, arrays, JSON, tables of notebooks, pickles."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import resnet50_client
from resnet50.v1 import inference_pb2, result_pb2, variant_pb2
from resnet50_client import (
    Category,
    Classification,
    Embedding,
    FrameAnswer,
    InvalidImageError,
    Timing,
    VariantRef,
    _codec,
    _variant_codec,
    types,
)

REF = VariantRef("digits", "ab" * 32)
TIMING = Timing(1.0, 2.0, 3.0, 6.5, 4)
LABELS = ("cat", "dog", "fish")


def classification(count: int = 3, **fields: Any) -> Classification:
    shares = (0.5, 0.25, 0.125)
    categories = tuple(Category(at, LABELS[at], shares[at]) for at in range(count))
    return Classification(categories, None, REF, TIMING, **fields)


def embedding(**fields: Any) -> Embedding:
    return Embedding(np.arange(4, dtype=np.float32), "digits@ab", False, REF, TIMING, **fields)


def variant(**fields: Any) -> types.Variant:
    return _variant_codec.variant(variant_pb2.Variant(**fields))


def test_classification_is_a_sequence_of_its_categories():
    result = classification()
    assert result[0] is result.top
    assert result[-1].label == "fish"
    assert result[1:] == result.categories[1:]
    assert list(result) == list(result.categories)
    assert next(reversed(result)) == result[2]
    assert result[1] in result
    assert result.index(result[1]) == 1
    with pytest.raises(IndexError):
        result[3]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_vector_of_a_response_has_to_be_finite(number):
    vector = result_pb2.Embedding(
        values=np.array([0.5, number], "<f4").tobytes(),
        type=result_pb2.EMBEDDING_TYPE_FLOAT32,
        dimension=2,
    )
    with pytest.raises(resnet50_client.ServerError, match="not finite"):
        _codec.embedding(inference_pb2.EmbedResponse(embedding=vector))


def test_classification_without_categories_is_false():
    assert classification()
    empty = classification(0)
    assert not empty
    assert len(empty) == 0
    with pytest.raises(IndexError, match="min_probability"):
        _ = empty.top


def test_source_and_request_id_do_not_count_for_equality():
    one = classification(source="a.jpg", request_id="1")
    assert one == classification(source="b.jpg", request_id="2")
    assert hash(one) == hash(classification())
    assert one != classification(2)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (result_pb2.EMBEDDING_TYPE_FLOAT32, np.float32),
        (result_pb2.EMBEDDING_TYPE_FLOAT16, np.float16),
    ],
)
def test_vector_of_an_embedding_is_writable(kind, dtype):
    values = np.arange(1, 5, dtype=dtype)
    message = result_pb2.Embedding(values=values.tobytes(), type=kind, dimension=4)
    found = _codec.embedding(inference_pb2.EmbedResponse(embedding=message))
    vector = found.vector
    vector /= np.linalg.norm(vector)
    assert found.vector.dtype == dtype
    assert found.vector.flags.owndata
    np.testing.assert_allclose(np.linalg.norm(found.vector.astype(np.float64)), 1.0, atol=1e-3)


def test_embedding_is_an_array_and_iterable():
    found = embedding()
    assert list(found) == [0.0, 1.0, 2.0, 3.0]
    assert all(type(value) is float for value in found)
    assert np.asarray(found) is not None and np.asarray(found).shape == (4,)
    assert np.asarray(found, dtype=np.float64).dtype == np.float64
    assert np.stack([found, found]).shape == (2, 4)


def everything() -> list[types.Record]:
    """Return a result of each class that the SDK has."""
    whole = variant(
        name="digits",
        state=variant_pb2.VARIANT_STATE_READY,
        categories=LABELS,
        transform=variant_pb2.Transform(resize=232, crop=224, mean=[0.5] * 3, std=[0.5] * 3),
        published_accuracy=variant_pb2.PublishedAccuracy(dataset="a", acc_at_1=80),
        quantization=variant_pb2.Quantization(calibration_images=3),
        latency=variant_pb2.BatchLatency(alpha_ms=1, beta_ms=2),
        loading=variant_pb2.Loading(stage=variant_pb2.LOADING_STAGE_BUILDING),
    )
    report = _variant_codec.traffic_report(
        variant_pb2.TrafficReport(
            split=variant_pb2.TrafficSplit(variant="a", candidate="b"),
            comparison=variant_pb2.Comparison(images=3),
        )
    )
    result = dataclasses.replace(classification(), embedding=embedding())
    nested = [whole.transform, whole.published_accuracy, whole.quantization, whole.latency]
    nested += [whole.loading, report.split, report.variant_answers, report.comparison]
    answers = [
        FrameAnswer(0, result=result),
        FrameAnswer(1, error=InvalidImageError("image: is broken", code="INVALID_ARGUMENT")),
        FrameAnswer(2, replaced_by=5),
    ]
    error = InvalidImageError("image: is broken")
    vectors = np.array([[1.0, 2.0], [np.nan, np.nan]], np.float32)
    return [
        types.EmbeddingBatch(vectors, {1: error}, REF, "digits@ab", False),
        types.StreamStats(read=3, sent=2),
        *(TIMING, REF, result, result[0], embedding(), whole, report, *nested, *answers),
        types.LoadResult(whole, None, ("a",)),
        types.SetDefaultResult(whole, "a"),
    ]


def test_every_class_of_results_is_tried():
    names = {name for name in types.__all__ if isinstance(getattr(types, name), type)}
    assert names - {type(one).__name__ for one in everything()} == {"Record"}


@pytest.mark.parametrize("one", everything(), ids=lambda one: type(one).__name__)
def test_dict_of_a_result_is_json_with_all_of_its_fields(one):
    found = one.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == [field.name for field in dataclasses.fields(one)]


def test_dict_has_the_values_of_nested_results():
    found = dataclasses.replace(classification(), embedding=embedding()).to_dict()
    assert found["categories"][0] == {"index": 0, "label": "cat", "probability": 0.5}
    assert found["embedding"]["vector"] == [0.0, 1.0, 2.0, 3.0]
    assert found["variant"] == {"name": "digits", "digest": "ab" * 32}
    assert found["timing"]["cache"] is None


def test_dict_of_a_failed_frame_has_its_error():
    error = InvalidImageError("image: is broken", code="INVALID_ARGUMENT", request_id="7")
    found = FrameAnswer(1, error=error).to_dict()
    assert found["error"] == {
        "type": "InvalidImageError",
        "message": "image: is broken",
        "code": "INVALID_ARGUMENT",
        "request_id": "7",
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [("a.jpg", "a.jpg"), (Path("a.jpg"), "a.jpg"), (b"content", None), (io.BytesIO(), None)],
)
def test_dict_has_the_source_only_if_it_is_a_path(source, expected):
    assert classification(source=source).to_dict()["source"] == expected


def test_numbers_that_json_lacks_become_null():
    found = dataclasses.replace(embedding(), vector=np.array([1.0, np.nan, np.inf])).to_dict()
    assert found["vector"] == [1.0, None, None]


class Table(HTMLParser):
    """The text of each cell of a table, and the names of all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.cells.append("")

    def handle_data(self, data):
        self.cells[-1] += data


@pytest.mark.parametrize("one", everything(), ids=lambda one: type(one).__name__)
def test_result_is_a_table_in_a_notebook(one):
    assert Table(one._repr_html_()).tags == {"table", "caption", "tr", "th", "td"}


def test_table_of_a_classification_has_labels_and_percentages():
    cells = Table(classification()._repr_html_()).cells
    assert cells[-2:] == ["fish", "12.5%"]
    assert Table(classification(0)._repr_html_()).cells[-2] == "no category"
    many = dataclasses.replace(classification(), categories=classification().categories * 10)
    assert Table(many._repr_html_()).cells[-1] == "30 in all"


def test_text_in_tables_is_escaped():
    script = "<script>alert(1)</script>"
    label = dataclasses.replace(classification(), categories=(Category(0, script, 1.0),))
    for one in (label, variant(name=script, description=script), VariantRef(script, script)):
        assert script not in one._repr_html_()
        assert script in "".join(Table(one._repr_html_()).cells)


@pytest.mark.parametrize("one", everything(), ids=lambda one: type(one).__name__)
def test_result_is_whole_after_a_pickle(one):
    back = pickle.loads(pickle.dumps(one))
    assert type(back) is type(one)
    assert back.to_dict() == one.to_dict()


def test_pickle_has_the_source_only_if_it_is_a_path():
    with open(__file__, "rb") as file:
        for source, expected in (("a.jpg", "a.jpg"), (file, None), (b"x" * 10**6, None)):
            for one in (classification(source=source), embedding(source=source)):
                pickled = pickle.dumps(one)
                assert len(pickled) < 10_000
                assert pickle.loads(pickled).source == expected
    assert copy.copy(classification(source="a.jpg")).source == "a.jpg"


def test_absent_values_of_a_variant_are_none():
    found = variant(name="digits", state=variant_pb2.VARIANT_STATE_LOADING)
    absent = (found.digest, found.last_failure, found.problem, found.latency, found.loading)
    assert absent == (None,) * 5
    transform = found.transform
    assert (transform.resize, transform.crop, transform.resize_longer_side) == (None,) * 3
    loaded = _variant_codec.load_result(variant_pb2.LoadVariantResponse())
    assert loaded.replaced_digest is None
    assert _variant_codec.traffic_report(variant_pb2.TrafficReport()).ended is None


def test_states_are_those_of_the_contract():
    for kind, literal in (
        (variant_pb2.VariantState, types.VariantState),
        (variant_pb2.LoadingStage, types.LoadingStage),
        (variant_pb2.Activation, types.Activation),
    ):
        names = {_codec.enum_name(kind, value) for value in kind.values()} - {"unspecified"}
        assert {*names, "unknown"} == set(get_args(literal))


def test_state_of_a_newer_server_is_unknown():
    message = variant_pb2.Variant.FromString(b"\x18\x63")  # field 3, a varint: 99
    assert _variant_codec.variant(message).state == "unknown"


def test_frame_answer_shows_its_outcome_in_words():
    assert repr(FrameAnswer(3, replaced_by=5)) == "FrameAnswer(3: replaced by 5)"
    failed = FrameAnswer(4, error=InvalidImageError("image: is broken"))
    assert repr(failed) == "FrameAnswer(4: InvalidImageError('image: is broken'))"
    assert repr(FrameAnswer(5, result=classification())).startswith("FrameAnswer(5: Classific")


def test_public_types_are_exported_by_the_package_too():
    records = {name for name in types.__all__ if isinstance(getattr(types, name), type)}
    assert records - {"Record"} <= set(resnet50_client.__all__)
    for name in records - {"Record"}:
        assert getattr(resnet50_client, name) is getattr(types, name)
