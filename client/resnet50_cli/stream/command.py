"""The command `stream`: classify the frames of a video, a camera or a folder, in real time."""

from __future__ import annotations

import csv
import re
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.live import Live

from resnet50_client._frames import FrameAnswer
from resnet50_client.types import Classification

from ..connection_options import Servers, with_servers
from ..extras import exit_missing
from ..images import warn_of_result
from ..options import (
    DEFAULT_CONCURRENCY,
    AsJson,
    Background,
    Concurrency,
    Delivery,
    SourceTimeout,
    VariantName,
    check_output,
)
from ..output import (
    SOME_FAILED,
    error_code,
    error_text,
    print_json,
    print_line,
    print_note,
    printable,
    reporting_errors,
    showing_log,
    stderr,
    stop_signals,
    warn,
)
from .annotate import Annotator
from .frame_order import FrameOrder
from .frame_source import Position, open_source
from .summary import StreamSummary

COLUMNS = (
    *("frame_id", "frame", "time_s", "outcome", "label", "probability", "replaced_by"),
    "latency_ms",
)
Row = dict[str, Any]


class Encoding(str, Enum):
    """Encodings of `frames_from_video`."""

    raw = "raw"
    jpeg = "jpeg"


@with_servers
def stream(
    servers: Servers,
    source: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO|URL|FOLDER|CAMERA",
            help="A video file, the URL of a video or a network camera (https://, rtsp://), a"
            " folder of images (sent in the order of their names), or a camera number.",
        ),
    ],
    variant: VariantName = None,
    background: Background = None,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps",
            min=0.001,
            help="Frames per second to sample from a video (default: all), or to play a folder's"
            " images at (default: 25).",
        ),
    ] = None,
    delivery: Annotated[
        Delivery,
        typer.Option(
            "--delivery",
            help="ordered: compute every frame, however long it takes; latest: a newer frame"
            " replaces a pending one, and files are played in real time.",
        ),
    ] = Delivery.ordered,
    av_options: Annotated[
        list[str] | None,
        typer.Option(
            "--av-option",
            metavar="NAME=VALUE",
            help="Option of FFmpeg for the source, e.g. rtsp_transport=udp (TCP is the default);"
            " may be repeated. FFmpeg ignores unknown ones.",
        ),
    ] = None,
    reconnect_s: Annotated[
        float | None,
        typer.Option(
            "--reconnect-s",
            min=0,
            help="Connect again to a camera or network source that fails, until it has sent nothing"
            " for this many seconds. 0: end at the first failure. Default: 60.",
        ),
    ] = None,
    camera_format: Annotated[
        str | None,
        typer.Option(
            "--camera-format",
            help="Pixel format or codec of the camera: mjpeg, yuyv422, ... Many cameras reach their"
            " frame rate with mjpeg only.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="WIDTHxHEIGHT", help="Size of the camera's frames, e.g. 1920x1080."
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=0.001, help="Frames per second of the camera."),
    ] = None,
    encoding: Annotated[
        Encoding | None,
        typer.Option(
            "--encoding",
            help="Encoding of video frames on the wire. Default: raw, and jpeg for frames above"
            " 4 MiB, such as 4K.",
        ),
    ] = None,
    annotate: Annotated[
        Path | None,
        typer.Option(
            "--annotate",
            help="Write an .mp4 file of the frames with label and probability. Latencies then"
            " include drawing.",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help=f"Write a .csv file, one row per frame: {', '.join(COLUMNS)}. frame_id counts the"
            " frames that were sent, frame those of the source; replaced_by is a frame_id.",
        ),
    ] = None,
    timeout_s: SourceTimeout = None,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
    as_json: AsJson = False,
) -> None:
    """Classify the frames of a video, a camera or a folder of images in real time.

    Ctrl-C stops the source: frames in flight are completed, and the output files are finished.
    """
    check_output(annotate, "--annotate", ".mp4")
    check_output(csv_file, "--csv", ".csv")
    options = {
        "av_options": _parse_av_options(av_options),
        "timeout_s": timeout_s,
        "reconnect_s": reconnect_s,
        "camera_format": camera_format,
        "size": _parse_size(size),
        "rate": rate,
    }
    with reporting_errors(), ExitStack() as stack:
        stack.enter_context(showing_log())
        client = stack.enter_context(servers.client(timeout_s))
        client.get_variant(variant)
        stop = stack.enter_context(stop_signals())
        try:
            frames = open_source(
                source,
                stop,
                fps=fps,
                encoding=None if encoding is None else encoding.value,
                real_time=delivery is Delivery.latest,
                options={name: value for name, value in options.items() if value is not None},
            )
            outputs = _Outputs(
                Annotator(annotate) if annotate is not None else None,
                stack.enter_context(_created(csv_file)) if csv_file is not None else None,
                as_json,
            )
        except ImportError as error:
            exit_missing("stream", "video", error.name)
        stack.callback(outputs.close)
        order = FrameOrder[Classification](frames.images, stop, concurrency) if annotate else None
        answers = client.classify_stream(
            frames.images if order is None else order.images(),
            delivery=delivery.value,
            variant=variant,
            top_k=1,
            background=background,
            window=concurrency,
        )
        summary = StreamSummary(answers)
        stack.callback(_summarise, summary, as_json)
        stack.enter_context(answers)
        if order is not None:
            stack.callback(order.close)
        if stderr.is_terminal:
            live = Live(summary, console=stderr, transient=True, redirect_stdout=False)
            stack.enter_context(live)
        for answer in answers:
            position = frames.position(answer)
            row = _row(position, answer)
            summary.add(answer, row["label"], _caption(answer))
            outputs.write(row, answer.error)
            if answer.error is not None:
                warn(f"{position.name}: {error_text(answer.error)}")
            if answer.result is not None:
                warn_of_result(position.name, answer.result)
            for due in () if order is None else order.in_order(answer):
                outputs.draw(frames.position(due), due)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


class _Outputs:
    """Outputs for rows and annotated frames.

    Args:
        annotator: Writes the video; None for none.
        table: The CSV file; None for none.
        as_json: Print rows to stdout as JSON, too.
    """

    def __init__(self, annotator: Annotator | None, table: TextIO | None, as_json: bool) -> None:
        self._annotator = annotator
        self._table = csv.DictWriter(table, COLUMNS) if table is not None else None
        self._as_json = as_json
        self._caption = ""
        if self._table is not None:
            self._table.writeheader()

    def write(self, row: Row, error: Exception | None) -> None:
        """Write a frame's row; with "latest", frames complete in any order."""
        if self._table is not None:
            self._table.writerow(row)
        if self._as_json:
            failure = {"error": {"code": error_code(error), "message": str(error)}} if error else {}
            print_json(row | failure)

    def draw(self, position: Position, answer: FrameAnswer[Classification]) -> None:
        """Write a frame of the video, in order; one without a result keeps the last caption."""
        if answer.result is not None:
            self._caption = _caption(answer)
        if self._annotator is not None:
            self._annotator.write(answer.source, position.time_s, self._caption)

    def close(self) -> None:
        """Finish the video."""
        if self._annotator is not None:
            self._annotator.close()


def _row(position: Position, answer: FrameAnswer[Classification]) -> Row:
    """Return a frame's row by column."""
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "frame_id": answer.frame_id,
        "frame": position.number,
        "time_s": round(position.time_s, 6),
        "replaced_by": answer.replaced_by,
    }
    row["outcome"] = "dropped" if answer.dropped else "failed" if answer.error else "answered"
    if not answer.dropped:
        row["latency_ms"] = round(answer.latency_s * 1000, 3)
    # A variant with thresholds may find no category.
    for top in () if answer.result is None else answer.result[:1]:
        row |= {"label": top.label, "probability": round(top.probability, 6)}
    return row


def _caption(answer: FrameAnswer[Classification]) -> str:
    """Return the top category; "" for a frame without a result, or without a category."""
    return printable(", ".join(map(repr, answer.result[:1]))) if answer.result is not None else ""


def _created(path: Path) -> TextIO:
    return path.open("w", newline="", encoding="utf-8")


def _summarise(summary: StreamSummary, as_json: bool) -> None:
    """Print the summary to stdout, or to stderr if stdout is JSON."""
    for line in summary.lines():
        print_note(line) if as_json else print_line(line)


def _parse_av_options(texts: list[str] | None) -> dict[str, str] | None:
    """Return options by name; None for none."""
    options = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--av-option")
        options[name] = value
    return options or None


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Return width and height; None for none."""
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text):
        raise typer.BadParameter(
            f"{text!r} is not WIDTHxHEIGHT in pixels, e.g. 1920x1080", param_hint="--size"
        )
    width, height = map(int, text.split("x"))
    return width, height
