"""The command `classify`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from resnet50_bulk.file_names import name_to_text
from resnet50_bulk.image_files import LeftOut, find_images
from resnet50_client import BulkResults
from resnet50_client.types import Classification

from .connection_options import Servers, with_servers
from .images import Answer, KeyedImages, answers, is_unanswered, warn_of_image
from .name_lists import chosen_names
from .options import (
    AsJson,
    Background,
    BulkConcurrency,
    Files,
    FilesFrom,
    Null,
    StreamTimeout,
    VariantName,
)
from .output import (
    NO_SERVER,
    SOME_FAILED,
    error_code,
    error_text,
    print_json,
    print_line,
    print_note,
    report_left_out,
    reporting_errors,
    warn,
)


@with_servers
def classify(
    servers: Servers,
    files: Files = None,
    files_from: FilesFrom = None,
    null: Null = False,
    variant: VariantName = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help="Number of categories per image. Default: 5, or all if the variant has fewer.",
        ),
    ] = None,
    min_probability: Annotated[
        float | None,
        typer.Option(
            "--min-probability",
            min=0,
            max=1,
            help="Omit categories below this. Default: below their threshold, if the variant has"
            " thresholds.",
        ),
    ] = None,
    background: Background = None,
    timeout_s: StreamTimeout = None,
    concurrency: BulkConcurrency = None,
    as_json: AsJson = False,
) -> None:
    """Classify images."""
    failed, unanswered, left_out = 0, 0, LeftOut()
    with reporting_errors(), servers.client(timeout_s) as client:
        names = chosen_names(files or [], files_from, null)
        # Fails at once if no server is reachable; later failures are retried.
        client.get_variant(variant)

        def call(images: KeyedImages) -> BulkResults[tuple[str, Classification | Exception]]:
            return client.classify_many(
                images,
                variant=variant,
                top_k=top_k,
                min_probability=min_probability,
                background=background,
                keyed=True,
                return_exceptions=True,
                max_in_flight=concurrency,
            )

        with closing(answers(call, find_images(names, left_out))) as results:
            for answer in results:
                if isinstance(answer.outcome, Exception):
                    failed += 1
                    unanswered += is_unanswered(answer.outcome)
                _show(answer, as_json)
        report_left_out(left_out)
    if unanswered:
        print_note(f"{unanswered} images were not answered in time (--timeout-s)")
        raise typer.Exit(NO_SERVER)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _show(answer: Answer[Classification], as_json: bool) -> None:
    """Print an image's categories; errors go to stderr."""
    path, outcome = answer.path, answer.outcome
    warn_of_image(answer)
    name = name_to_text(path)
    if isinstance(outcome, Exception):
        if as_json:
            print_json(
                {"path": name, "error": {"code": error_code(outcome), "message": str(outcome)}}
            )
        warn(f"{path}: {error_text(outcome)}")
    elif as_json:
        fields = outcome.to_dict()
        del fields["source"]  # the path, which may not be UTF-8
        print_json({"path": name, **fields})
    else:
        print_line(f"{path}: {', '.join(map(repr, outcome)) or 'no category is probable enough'}")
