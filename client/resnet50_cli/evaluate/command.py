"""The command `evaluate`: accuracy of a variant, as it is served, on labelled images."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

import typer

from resnet50_client import BulkResults, Classification
from resnet50_client._client import Client
from resnet50_client.types import Variant

from ..connection_options import Servers, with_servers
from ..extras import require
from ..images import KeyedImages, is_unanswered
from ..name_lists import listed_names
from ..options import (
    AsJson,
    Background,
    BulkConcurrency,
    FilesFrom,
    Null,
    StreamTimeout,
    VariantName,
    check_output,
)
from ..output import (
    INTERRUPTED,
    NO_SERVER,
    SOME_FAILED,
    error_text,
    exit_with,
    print_json,
    print_note,
    printable,
    progress_bar,
    report_left_out,
    reporting_errors,
    show,
    stop_signals,
    warn,
)
from .answer_file import AnswerFile
from .answers import Call, WeightsChanged, classify_all
from .category_names import CategoryNames, read_names
from .labelled_images import CategoryFolders, LabelFile, LabelledImages, ListedImages
from .report import write_html
from .result import TOP_K, Evaluation, Tally
from .table import tables

TABLE_COLUMNS = 100
IMAGE_LABELS, NAME_FILES = ".csv", (".json", ".txt")


@with_servers
def evaluate(
    servers: Servers,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder for each category, named by the category, its index or a name of"
            " --labels; or the folder that the paths in the .csv file of --labels start at.",
        ),
    ],
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="A .csv file of the columns path and label; or a .json or .txt file of other names"
            " of the categories, such as WordNet IDs. Both may be given.",
        ),
    ] = None,
    files_from: FilesFrom = None,
    null: Null = False,
    variant: VariantName = None,
    background: Background = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="VARIANT", help="Another variant, evaluated on the same images."
        ),
    ] = None,
    compare_server: Annotated[
        str | None,
        typer.Option(
            "--compare-server",
            metavar="HOST:PORT",
            help="Server of the other variant, e.g. of another precision. Default: --server.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a report to an .html file.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write a .csv file, one row per image.")
    ] = None,
    timeout_s: StreamTimeout = None,
    concurrency: BulkConcurrency = None,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of a variant on labelled images, as it is served.

    Shows acc@1 and acc@5 with confidence intervals, beside the published accuracy, by category, and
    which categories are confused. Images that fail are listed and count in no accuracy.
    """
    if html is not None:
        require("evaluate", "cli", "jinja2")
    check_output(html, "--html", ".html")
    check_output(csv_file, "--csv", ".csv")
    with reporting_errors(), ExitStack() as stack:
        clients = [stack.enter_context(servers.client(timeout_s))]
        variants = [clients[0].get_variant(variant)]
        _check_variant(variants[0])
        if compare is not None or compare_server is not None:
            if compare_server is not None:
                clients.append(stack.enter_context(servers.at(compare_server).client(timeout_s)))
            variants.append(clients[-1].get_variant(compare if compare is not None else variant))
            _check_other(variants[0], variants[1], same_server=compare_server is None)
        images = _images(folder, labels or [], files_from, null, variants[0])
        answer_file = None
        if csv_file is not None:
            file = stack.enter_context(csv_file.open("w", newline="", encoding="utf-8"))
            answer_file = AnswerFile(file, variants[0].categories, len(variants))
        calls = [
            _call(clients[min(position, len(clients) - 1)], one, background, concurrency)
            for position, one in enumerate(variants)
        ]
        tally, run = Tally(variants), _Run()
        stop = stack.enter_context(stop_signals())
        try:
            run.fill(tally, calls, images, answer_file, stop)
        except WeightsChanged as error:
            exit_with(error, SOME_FAILED)
        finally:
            left_out = dict(images.left_out.files.most_common())
            found = tally.evaluation(str(folder), images.count, left_out, run.complete)
            _report(found, html, as_json)
            report_left_out(images.left_out)
    if not run.complete:
        raise typer.Exit(INTERRUPTED)
    if run.unanswered:
        print_note(f"{run.unanswered} images were not answered in time (--timeout-s)")
        raise typer.Exit(NO_SERVER)
    if found.failed or not found.answered:
        raise typer.Exit(SOME_FAILED)


class _Run:
    """One run over the images.

    Attributes:
        complete: Whether all images have an outcome.
        unanswered: Number of images that the servers did not answer in time.
    """

    def __init__(self) -> None:
        self.complete = False
        self.unanswered = 0

    def fill(
        self,
        tally: Tally,
        calls: list[Call],
        images: LabelledImages,
        answer_file: AnswerFile | None,
        stop: threading.Event,
    ) -> None:
        """Classify the images and count the outcomes, until all are done or `stop` is set."""
        with progress_bar() as bar, closing(classify_all(calls, images, stop)) as outcomes:
            task = bar.add_task("evaluating", total=images.count)
            for answered in outcomes:
                error = tally.add(answered)
                if error is not None:
                    self.unanswered += is_unanswered(error)
                    warn(f"{answered.image.path}: {error_text(error)}")
                if answer_file is not None:
                    answer_file.write(answered)
                bar.advance(task)
        self.complete = not stop.is_set()


def _images(
    folder: Path, labels: list[Path], files_from: str | None, null: bool, variant: Variant
) -> LabelledImages:
    """Return the labelled images that the options name.

    Raises:
        ValueError: The options contradict each other, or as the classes of labelled images.
        OSError: As these classes.
    """
    rows = [path for path in labels if path.suffix.lower() == IMAGE_LABELS]
    names = [path for path in labels if path.suffix.lower() in NAME_FILES]
    for path in labels:
        if path not in rows and path not in names:
            raise ValueError(f"--labels {path}: ends in none of .csv, .json and .txt")
    if len(rows) > 1 or len(names) > 1:
        raise ValueError("--labels: pass at most one .csv file, and one .json or .txt file")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is no folder")
    other_names = read_names(names[0], variant) if names else {}
    categories = CategoryNames(variant, other_names)
    if null and files_from is None:
        raise ValueError("--null describes the list of --files-from, which is not given")
    if not rows and files_from is None:
        return CategoryFolders(folder, categories)
    if not rows and files_from is not None:
        return ListedImages(folder, listed_names(files_from, null), categories)
    if files_from is not None:
        raise ValueError("--files-from and the .csv file of --labels both list images; pass one")
    return LabelFile(rows[0], folder, categories)


def _check_variant(variant: Variant) -> None:
    """Refuse a variant that has no single correct category per image.

    Raises:
        ValueError: It has no categories, or several for each image.
    """
    if not variant.categories:
        raise ValueError(f"{variant.name} has no categories: it has embeddings only")
    if variant.activation != "softmax":
        raise ValueError(
            f"{variant.name} is a multi-label variant (activation {variant.activation}): acc@1 and"
            " acc@5 need one correct category per image"
        )


def _check_other(first: Variant, second: Variant, same_server: bool) -> None:
    """Refuse a comparison that says nothing.

    Raises:
        ValueError: The variants are the same one, or their categories differ.
    """
    _check_variant(second)
    if same_server and first.name == second.name:
        raise ValueError(
            f"--compare: {first.name} would be compared with itself; name another variant, or the"
            " server of another precision by --compare-server"
        )
    if first.categories != second.categories:
        raise ValueError(
            f"--compare: {second.name} has other categories than {first.name}, so that their"
            " answers cannot be compared"
        )


def _call(
    client: Client, variant: Variant, background: str | None, concurrency: int | None
) -> Call:
    def call(images: KeyedImages) -> BulkResults[tuple[str, Classification | Exception]]:
        return client.classify_many(
            images,
            variant=variant.name,
            top_k=min(TOP_K, variant.category_count),
            background=background,
            keyed=True,
            return_exceptions=True,
            max_in_flight=concurrency,
        )

    return call


def _report(found: Evaluation, html: Path | None, as_json: bool) -> None:
    """Print the result, and write the report."""
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        show(tables(printable(found)), TABLE_COLUMNS)
    if html is not None:
        write_html(found, html)
