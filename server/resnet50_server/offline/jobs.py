"""Jobs: embed or classify all images of a source into one output."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resnet50_bulk.arrow_rows import CategoryColumn
from resnet50_bulk.outputs import Output, output_at
from resnet50_bulk.progress import OnProgress, ProgressObserver
from resnet50_bulk.provenance import Provenance
from resnet50_bulk.run import Images, Outcome, opened_run
from resnet50_bulk.sources import Names, source_of

from .local import LocalClassifier, LocalEmbedder
from .workers import RayWorkers


class BulkCall(Protocol):
    """Computes the results of a run, in this process or on Ray.

    Attributes:
        provenance: Provenance of the results, as far as it is known before the first of them.
        labels: Names of the variant's categories.
    """

    provenance: Provenance
    labels: Sequence[str]

    def __call__(self, images: Images, /) -> Generator[tuple[str, Outcome], None, None]:
        """Compute images; see `RunCall`."""

    def close(self) -> None:
        """Free what computes."""


@dataclass(frozen=True)
class Summary:
    """Result of a job.

    Attributes:
        out: The output.
        written: Number of results written to it.
        failed: Number of images with an error instead of a result.
        skipped: Number of images that the output contained already.
    """

    out: Path
    written: int
    failed: int
    skipped: int


def embed(
    source: Names,
    out: str | Path,
    *,
    variant: str | None = None,
    l2_normalize: bool = False,
    background: str | None = None,
    append: bool = False,
    restart: bool = False,
    on_progress: OnProgress | None = None,
    workers: RayWorkers | None = None,
    **options: Any,
) -> Summary:
    """Compute the embeddings of all images of a source on this machine.

    An interrupted job resumes from its checkpoint, OUT.partial. A bad image is a row with an error.

    Args:
        source: The images; see `source_of`.
        out: Name of the output: .npz, .parquet or .lance.
        variant: A name from torchvision, "NAME=DIRECTORY" or "NAME=random:SEED"; None for the first
            of RESNET50_VARIANTS, or IMAGENET1K_V2.
        l2_normalize: Scale vectors to length 1.
        background: Background of transparent pixels; None for the variant's.
        append: Add the images that the output does not contain to it. Otherwise it is replaced.
        restart: Discard the checkpoint of an interrupted job.
        on_progress: Called with the progress every 10 s; None to log it.
        workers: Workers on a Ray cluster; None for this process.
        **options: Settings of `resnet50-server serve`, e.g. `device`, `max_batch_size`.

    Raises:
        ValueError: An argument is wrong, or the output's vectors are of another space.
        OSError: A file cannot be read or written.
        WorkerFailed: The variant cannot be loaded, or does not compute any more.
    """
    output = output_at(Path(out))
    with closing(
        open_embedder(
            variant, l2_normalize=l2_normalize, background=background, workers=workers, **options
        )
    ) as call:
        return _run(source, output, call, append, restart, on_progress)


def classify(
    source: Names,
    out: str | Path,
    *,
    variant: str | None = None,
    top_k: int | None = None,
    background: str | None = None,
    append: bool = False,
    restart: bool = False,
    on_progress: OnProgress | None = None,
    workers: RayWorkers | None = None,
    **options: Any,
) -> Summary:
    """Classify all images of a source on this machine; otherwise as `embed`.

    Args:
        source: The images; see `source_of`.
        out: Name of the output: .parquet or .lance.
        variant: See `embed`.
        top_k: Number of categories per image; None for 5, or all if the variant has fewer.
        background: See `embed`.
        append: See `embed`.
        restart: See `embed`.
        on_progress: See `embed`.
        workers: See `embed`.
        **options: See `embed`.

    Raises:
        ValueError: An argument is wrong, or the output is of another variant.
        OSError: A file cannot be read or written.
        WorkerFailed: The variant cannot be loaded, or does not compute any more.
    """
    output_at(Path(out), CategoryColumn())
    arguments = {"variant": variant, "top_k": top_k, "background": background, **options}
    with closing(_open(LocalClassifier, workers, arguments)) as call:
        output = output_at(Path(out), CategoryColumn(call.labels))
        return _run(source, output, call, append, restart, on_progress)


def open_embedder(
    variant: str | None = None,
    *,
    l2_normalize: bool = False,
    background: str | None = None,
    workers: RayWorkers | None = None,
    **options: Any,
) -> BulkCall:
    """Open the call that computes the embeddings of a run; the caller closes it.

    Args:
        variant: See `embed`.
        l2_normalize: See `embed`.
        background: See `embed`.
        workers: See `embed`.
        **options: See `embed`.

    Raises:
        ValueError: An argument is wrong, or Ray is not installed.
        WorkerFailed: The variant cannot be loaded.
    """
    arguments = {
        "variant": variant,
        "l2_normalize": l2_normalize,
        "background": background,
        **options,
    }
    return _open(LocalEmbedder, workers, arguments)


def _open(
    kind: type[LocalEmbedder] | type[LocalClassifier],
    workers: RayWorkers | None,
    arguments: dict[str, Any],
) -> BulkCall:
    """Return what computes, in this process or on Ray's workers.

    Raises:
        ValueError: An argument is wrong, or Ray is not installed.
        WorkerFailed: The variant cannot be loaded.
    """
    if workers is None:
        return kind(**arguments)
    # Imported here: Ray is optional.
    try:
        from .ray_data import RayCall
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Ray workers need {error.name}: install resnet50-serving with the extra [ray]"
        ) from error
    return RayCall(kind, workers, arguments)


def _run(
    source: Names,
    output: Output,
    call: BulkCall,
    append: bool,
    restart: bool,
    on_progress: OnProgress | None,
) -> Summary:
    images = source_of(source)
    observer = ProgressObserver(on_progress)
    with opened_run(images, output, append=append, restart=restart, observer=observer) as run:
        run.check(call.provenance)
        run.fill(call, threading.Event())
        run.write()
        return Summary(output.path, run.written, run.failed, run.skipped)
