"""Bulk runs on Ray Data: workers on the machines of a cluster, and one process that writes.

Blocks of names go to a pool of actors, each of which reads, decodes and computes its images. The
results return to the process of the run, which saves them in its checkpoint. If an actor or its
machine is lost, Ray computes its blocks again on another one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError

from resnet50_bulk.checkpoint import ImageResult
from resnet50_bulk.error_text import error_text
from resnet50_bulk.image_files import STDIN
from resnet50_bulk.provenance import CATEGORIES, DTYPE, Provenance
from resnet50_bulk.run import Images, Outcome
from resnet50_bulk.source import Source
from resnet50_server.errors import WeightsError
from resnet50_server.inference.decode_pool import decode_threads
from resnet50_server.ray.cluster import Unreachable, connect, last_line
from resnet50_server.settings import ENV_PREFIX
from resnet50_server.variants.spec import parse_variant

from .local import LocalCall, LocalClassifier, checked_top_k
from .options import worker_settings
from .worker import WorkerFailed, parsed_background
from .workers import LOCAL, RayWorkers

# Images of a task. A lost worker's tasks are computed again; a task costs about 10 ms.
BLOCK_IMAGES = 256
# Tasks that a worker computes at once, so that its engine is busy between two of them.
TASKS_AT_ONCE = 2
# Columns of a computed block.
COMPUTED = pa.schema(
    {
        "name": pa.binary(),
        "vector": pa.binary(),
        "error": pa.binary(),
        "provenance": pa.string(),
        # Of the worker, not of an image.
        "failure": pa.binary(),
    }
)


class ImageFailed(Exception):
    """An image failed on a worker; the text is that of its error there."""


class RayCall:
    """Computes the results of a bulk run on a Ray cluster.

    Args:
        kind: Computes them on a worker.
        workers: The workers.
        arguments: Arguments of `kind`. Settings of this process's environment are theirs, too.

    Attributes:
        provenance: Provenance of the results; the workers add what their weights determine.
        labels: Names of the variant's categories.

    Raises:
        ValueError: An argument is wrong.
        WorkerFailed: The variant does not exist, or the cluster cannot be reached.
    """

    def __init__(
        self, kind: type[LocalCall], workers: RayWorkers, arguments: dict[str, Any]
    ) -> None:
        self._kind, self._workers = kind, workers
        self._arguments = arguments = _threads(workers) | arguments
        names = ("variant", "background", "l2_normalize", "top_k")
        options = {key: value for key, value in arguments.items() if key not in names}
        settings = worker_settings(arguments.get("variant"), options)
        parsed_background(arguments.get("background"))
        try:
            spec = parse_variant(settings.variants[0])
        except WeightsError as error:
            raise WorkerFailed(str(error)) from error
        classifies = issubclass(kind, LocalClassifier)
        if classifies:
            checked_top_k(arguments.get("top_k"), spec.name, len(spec.categories))
        self.labels: Sequence[str] = spec.categories
        self.provenance = Provenance(
            *(spec.name, "", "", 0, bool(arguments.get("l2_normalize"))),
            background=arguments.get("background") or "",
            dtype=CATEGORIES if classifies else DTYPE,
            transform=spec.transform.digest,
        )
        self._started = not ray.is_initialized()
        if self._started:
            _connect(workers)

    def close(self) -> None:
        """Disconnect from the cluster, and stop it if it was started for this run."""
        if self._started:
            ray.shutdown()

    def __call__(self, images: Images) -> Generator[tuple[str, Outcome], None, None]:
        """Yield the names and results of images, in the order in which they are computed.

        Raises:
            WorkerFailed: The workers cannot load the variant, or do not compute any more.
        """
        if STDIN in images.names:
            raise ValueError(
                "the workers of --ray cannot read the standard input: pass the image's file"
            )
        names = iter(images.names)
        blocks = []
        while block := list(islice(names, BLOCK_IMAGES)):
            blocks.append(pa.table({"name": pa.array(map(os.fsencode, block), pa.binary())}))
            for name in block:
                images.fingerprints[name] = images.source.fingerprint(name)
        if not blocks:
            return
        environment = {
            key: value for key, value in os.environ.items() if key.startswith(ENV_PREFIX)
        }
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        workers = self._workers
        found = ray.data.from_arrow(blocks).map_batches(
            _Worker,
            fn_constructor_args=(
                *(self._kind, self._arguments, images.source),
                *(environment, os.getcwd()),
            ),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=workers.count,
                max_tasks_in_flight_per_actor=2 * TASKS_AT_ONCE,
                max_concurrent_calls_per_actor=TASKS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=workers.num_cpus,
            num_gpus=workers.num_gpus or None,
        )
        try:
            for table in found.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from _outcomes(table)
                if images.stop.is_set():
                    return
        except RayError as error:
            raise WorkerFailed(f"the Ray workers failed: {last_line(str(error))}") from error


class _Worker:
    """An actor that computes blocks of images.

    Args:
        kind: Computes them.
        arguments: Arguments of `kind`.
        source: The images.
        environment: Settings.
        directory: Directory that relative paths start from, if this machine has it.
    """

    def __init__(
        self,
        kind: type[LocalCall],
        arguments: dict[str, Any],
        source: Source,
        environment: dict[str, str],
        directory: str,
    ) -> None:
        os.environ.update(environment)
        with suppress(OSError):
            os.chdir(directory)
        self._source = source
        self._call: LocalCall | None = None
        self._failure = ""
        try:
            self._call = kind(**arguments)
        except Exception as error:
            # Ray loses the error of some actors that never started, and prints the others at
            # length; the first block carries it instead.
            self._failure = _reason(error)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Compute a block: a column of names to columns of names, vectors and errors.

        If the worker has failed, the block is one row with the reason.
        """
        names = [os.fsdecode(name) for name in block.column("name").to_pylist()]
        if self._call is None:
            return _failed(self._failure)
        try:
            found = dict(self._call(self._source.images(names)))
        except WorkerFailed as error:
            return _failed(_reason(error))
        vectors: list[bytes | None] = []
        errors: list[bytes | None] = []
        for name in names:
            outcome = found.get(name, OSError("the source does not contain it any more"))
            failed = isinstance(outcome, Exception)
            vectors.append(None if isinstance(outcome, Exception) else outcome.vector.tobytes())
            text = error_text(outcome) if isinstance(outcome, Exception) else ""
            errors.append(_encoded(text) if failed else None)
        provenance = self._call.provenance.to_json()
        return pa.table(
            {
                "name": block.column("name"),
                "vector": vectors,
                "error": errors,
                "provenance": [provenance] * len(names),
                "failure": [None] * len(names),
            },
            COMPUTED,
        )


def _failed(reason: str) -> pa.Table:
    """Return a block of a worker that has failed."""
    text = f"{ray.util.get_node_ip_address()}: {reason}"
    return pa.Table.from_pylist([{"failure": _encoded(text)}], COMPUTED)


def _reason(error: Exception) -> str:
    text = error_text(error)
    told = isinstance(error, (WorkerFailed, ValueError, OSError)) and text
    return text if told else f"{type(error).__name__}: {text}"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _outcomes(table: pa.Table) -> Iterator[tuple[str, Outcome]]:
    """Yield the names and results of a block.

    Raises:
        WorkerFailed: Its worker has failed.
    """
    provenances: dict[str, Provenance] = {}
    for row in table.to_pylist():
        if row["failure"] is not None:
            raise WorkerFailed(f"the Ray worker on {row['failure'].decode()}")
        name = os.fsdecode(row["name"])
        if row["error"] is not None:
            yield name, ImageFailed(row["error"].decode())
            continue
        text = row["provenance"]
        provenance = provenances.setdefault(text, Provenance.from_json(text))
        yield name, ImageResult(np.frombuffer(row["vector"], provenance.row_dtype), provenance)


def _threads(workers: RayWorkers) -> dict[str, Any]:
    """Return the settings by which a worker keeps to its CPUs, unless the environment has them."""
    on_cpu = not workers.num_gpus
    settings: dict[str, Any] = {
        "engine_threads": workers.num_cpus,
        "decode_threads": decode_threads(workers.num_cpus, on_cpu),
        "instances": 1,
    }
    return {
        name: value
        for name, value in settings.items()
        if f"{ENV_PREFIX}{name.upper()}" not in os.environ
    }


def _connect(workers: RayWorkers) -> None:
    options: dict[str, Any] = {}
    if workers.address == LOCAL:
        cpus = max(os.cpu_count() or 1, workers.count * workers.num_cpus + 1)
        options = {"num_cpus": cpus, "include_dashboard": False}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        connect(workers.address, **options)
    except Unreachable as error:
        raise WorkerFailed(f"--ray: {error}, or name {LOCAL!r} for one on this machine") from error
