from __future__ import annotations

import pytest

from resnet50.v1 import inference_pb2
from resnet50_server.api.task_cache import MAX_OPTIONS_BYTES, MAX_TASKS, TaskCache
from resnet50_server.api.tasks import ClassifyTask, EmbedTask
from resnet50_server.errors import InvalidRequest
from tests.support.fake_variants import served


@pytest.fixture
async def variants(tmp_path):
    return (await served(tmp_path, "a=random:0", "b=random:1")).variants


@pytest.fixture
def tasks(variants):
    return TaskCache(variants)


def options(**fields) -> inference_pb2.ClassifyOptions:
    return inference_pb2.ClassifyOptions(**fields)


async def test_equal_options_of_a_variant_share_a_task(tasks, variants):
    a, b = variants.find("a"), variants.find("b")
    task = tasks.get(ClassifyTask, options(top_k=3), a)
    assert tasks.get(ClassifyTask, options(top_k=3), a) is task
    assert (task.inference.top_k, task.variant) == (3, a)
    assert tasks.get(ClassifyTask, options(top_k=4), a).inference.top_k == 4
    assert tasks.get(ClassifyTask, options(top_k=3), b).variant is b
    embed = tasks.get(EmbedTask, inference_pb2.EmbedOptions(), a)
    assert isinstance(embed, EmbedTask)


async def test_kept_task_holds_no_part_of_its_request(tasks, variants):
    request = inference_pb2.ClassifyRequest(options=options(top_k=3))
    task = tasks.get(ClassifyTask, request.options, variants.find("a"))
    request.options.top_k = 4
    assert task.options.top_k == 3


async def test_tasks_of_a_retired_variant_are_dropped(tasks, variants):
    a, b = variants.find("a"), variants.find("b")
    for variant in (a, b):
        tasks.get(ClassifyTask, options(), variant)
    variants.unpublish(a)
    assert len(tasks) == 1
    tasks.get(ClassifyTask, options(top_k=2), a)  # of an upload that had begun before
    assert len(tasks) == 1


async def test_wrong_options_are_refused_each_time(tasks, variants):
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"options\.top_k: is 1001"):
            tasks.get(ClassifyTask, options(top_k=1001), variants.find("a"))


async def test_number_and_size_of_kept_options_are_bounded(tasks, variants):
    a = variants.find("a")
    for number in range(MAX_TASKS + 10):
        tasks.get(ClassifyTask, options(min_probability=number / 1e4), a)
    assert len(tasks) == MAX_TASKS
    unknown = options()
    unknown.MergeFromString(b"\xfa\x7f\xac\x02" + b"x" * 300)  # field 2047, 300 bytes
    assert len(unknown.SerializeToString()) > MAX_OPTIONS_BYTES
    kept = tasks.get(ClassifyTask, options(min_probability=0.0), a)
    assert tasks.get(ClassifyTask, unknown, a) is not tasks.get(ClassifyTask, unknown, a)
    assert tasks.get(ClassifyTask, options(min_probability=0.0), a) is kept
