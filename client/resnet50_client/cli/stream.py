"""The command `stream`: the frames of a video, a camera or a folder, classified as they come."""

from __future__ import annotations

import csv
from contextlib import ExitStack, closing
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.live import Live

from ..frames import FrameAnswer
from ..results import Classification
from .annotate import Annotator
from .footage import Shot, UnderWay, shots
from .options import DEFAULT_CONCURRENCY, AsJson, Concurrency, Patience, VariantName
from .output import (
    SOME_FAILED,
    WRONG_USAGE,
    code,
    complain,
    errors,
    errors_shown,
    fail,
    note,
    printable,
    reason,
    say,
    say_json,
    stopping,
)
from .servers import Servers, with_servers
from .tally import Tally

COLUMNS = ("frame", "time_s", "outcome", "label", "probability", "replaced_by", "latency_ms")
Row = dict[str, Any]


class Delivery(str, Enum):
    """As `Client.classify_stream` takes it."""

    ordered = "ordered"
    latest = "latest"


class Encoding(str, Enum):
    """As `frames_from_video` takes it."""

    raw = "raw"
    jpeg = "jpeg"


@with_servers
def stream(
    servers: Servers,
    source: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO|FOLDER|CAMERA",
            help="A video file, a folder of images (sent in the order of their names), or a"
            " camera's number.",
        ),
    ],
    variant: VariantName = "",
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps",
            min=0.001,
            help="Frames per second to take of a video; of a folder, how fast its images follow"
            " each other (25).",
        ),
    ] = None,
    delivery: Annotated[
        Delivery,
        typer.Option(
            "--delivery",
            help="ordered: every frame is computed, however long it takes; latest: a newer frame"
            " takes the place of one that waits, and a file is played at its own speed.",
        ),
    ] = Delivery.ordered,
    encoding: Annotated[
        Encoding, typer.Option("--encoding", help="How frames of a video travel.")
    ] = Encoding.raw,
    annotate: Annotated[
        Path | None,
        typer.Option(
            "--annotate",
            help="Write an .mp4 file of the frames with label and probability; latencies then"
            " include the drawing.",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", help=f"Write a .csv file with a row a frame: {', '.join(COLUMNS)}."),
    ] = None,
    timeout_s: Patience = None,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
    as_json: AsJson = False,
) -> None:
    """Classify the frames of a video, a camera or a folder of images, as they come.

    Ctrl-C ends the source: what is under way is answered, and the files are finished.
    """
    _check(annotate, "--annotate", ".mp4")
    _check(csv_file, "--csv", ".csv")
    with errors_shown(), ExitStack() as stack:
        client = stack.enter_context(servers.client(timeout_s))
        client.variant(variant)
        stop = stack.enter_context(stopping())
        try:
            real_time = stop if delivery is Delivery.latest else None
            footage = shots(source, fps, encoding.value, real_time)
            outputs = _Outputs(
                Annotator(annotate) if annotate is not None else None,
                stack.enter_context(_created(csv_file)) if csv_file is not None else None,
                as_json,
            )
        except ImportError as error:
            fail(_what_is_missing(error), WRONG_USAGE)
        stack.callback(outputs.close)
        under_way = UnderWay(footage, stop, concurrency if annotate else None, outputs.draw)
        tally = Tally(lambda: under_way.sent)
        stack.callback(_summarise, tally, as_json)
        stack.callback(under_way.close)
        if errors.is_terminal:
            stack.enter_context(Live(tally, console=errors, transient=True, redirect_stdout=False))
        answers = client.classify_stream(
            under_way.images(),
            delivery=delivery.value,
            variant=variant,
            top_k=1,
            window=concurrency,
        )
        stack.enter_context(closing(answers))
        for answer in answers:
            shot, newer = under_way.answered(answer)
            row = _row(shot, answer, newer)
            tally.add(row["outcome"], row["label"], _caption(answer), row["latency_ms"])
            outputs.write(row, answer.error)
            if answer.error is not None:
                complain(f"{shot.name}: {reason(answer.error)}")
    if tally.outcomes["failed"]:
        raise typer.Exit(SOME_FAILED)


class _Outputs:
    """Where rows and annotated frames go.

    Args:
        annotator: Writes the video; None for none.
        table: The CSV file; None for none.
        as_json: Whether rows go to stdout as well.
    """

    def __init__(self, annotator: Annotator | None, table: TextIO | None, as_json: bool) -> None:
        self._annotator = annotator
        self._table = csv.DictWriter(table, COLUMNS) if table is not None else None
        self._as_json = as_json
        self._caption = ""
        if self._table is not None:
            self._table.writeheader()

    def write(self, row: Row, error: Exception | None) -> None:
        """Write a frame's row; answers come in any order under "latest"."""
        if self._table is not None:
            self._table.writerow(row)
        if self._as_json:
            failure = {"error": {"code": code(error), "message": str(error)}} if error else {}
            say_json(row | failure)

    def draw(self, shot: Shot) -> None:
        """Write a frame of the video; they come in order. Without an answer it keeps the last."""
        assert shot.answer is not None
        if shot.answer.result is not None:
            self._caption = _caption(shot.answer)
        if self._annotator is not None and shot.image is not None:
            self._annotator.write(shot.image, shot.time_s, self._caption)

    def close(self) -> None:
        """Finish the video."""
        if self._annotator is not None:
            self._annotator.close()


def _row(shot: Shot, answer: FrameAnswer[Classification], newer: int | None) -> Row:
    """Return what is told of a frame, by column."""
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"frame": shot.number, "time_s": round(shot.time_s, 6), "replaced_by": newer}
    row["outcome"] = "dropped" if answer.dropped else "failed" if answer.error else "answered"
    if not answer.dropped:
        row["latency_ms"] = round(shot.latency_s * 1000, 3)
    if answer.result is not None:
        top = answer.result.top
        row |= {"label": top.label, "probability": round(top.probability, 6)}
    return row


def _caption(answer: FrameAnswer[Classification]) -> str:
    return printable(repr(answer.result.top)) if answer.result is not None else ""


def _created(path: Path) -> TextIO:
    return path.open("w", newline="", encoding="utf-8")


def _summarise(tally: Tally, as_json: bool) -> None:
    """Print the summary where no machine trips over it."""
    for line in tally.summary():
        note(line) if as_json else say(line)


def _what_is_missing(error: ImportError) -> Exception:
    return ValueError(
        f"video needs {error.name}, which is not installed: pip install 'resnet50-serving[video]'"
    )


def _check(out: Path | None, option: str, suffix: str) -> None:
    if out is None:
        return
    if out.suffix.lower() != suffix:
        raise typer.BadParameter(f"{out} does not end in {suffix}", param_hint=option)
    if not out.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {out.parent}", param_hint=option)
