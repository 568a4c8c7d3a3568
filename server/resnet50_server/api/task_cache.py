"""Tasks of recent options: options that callers repeat are checked once."""

from __future__ import annotations

from typing import TypeAlias

from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.lifecycle.registry import VariantRegistry

from .tasks import ClassifyTask, EmbedTask, Options, Task

TaskType: TypeAlias = type[ClassifyTask] | type[EmbedTask]

MAX_TASKS = 256
# Options with an unknown field, or a long name, may be longer: they are checked each time.
MAX_OPTIONS_BYTES = 256


class TaskCache:
    """Makes tasks, and keeps those of recent options. Event loop only.

    Args:
        variants: The registry; the tasks of a variant are dropped when it is retired.
    """

    def __init__(self, variants: VariantRegistry) -> None:
        self._tasks: dict[tuple[TaskType, LoadedVariant, bytes], Task] = {}
        variants.on_retired(self._drop)

    def __len__(self) -> int:
        return len(self._tasks)

    def get(self, task_type: TaskType, options: Options, variant: LoadedVariant) -> Task:
        """Return the task for options; equal options may share one.

        Args:
            task_type: Whether to classify or to embed.
            options: From the request.
            variant: The variant that computes it.

        Raises:
            InvalidRequest: An option is wrong.
            NoClassificationHead: The variant has none, and the task classifies.
        """
        content = options.SerializeToString()
        key = task_type, variant, content
        if (task := self._tasks.get(key)) is not None:
            return task
        # Of a copy: a part of a message keeps all of it in memory, image included.
        task = task_type(type(options).FromString(content), variant)
        if len(content) <= MAX_OPTIONS_BYTES and not variant.retired:
            if len(self._tasks) >= MAX_TASKS:
                del self._tasks[next(iter(self._tasks))]
            self._tasks[key] = task
        return task

    def _drop(self, variant: LoadedVariant) -> None:
        for key in [key for key in self._tasks if key[1] is variant]:
            del self._tasks[key]
