"""`resnet50-server variants check`: a dry run of a variant before it is served."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnet50_server.errors import WeightsError
from resnet50_server.images.transform import Transform
from resnet50_server.runtime.texts import escaped
from resnet50_server.settings import Settings
from resnet50_server.variants.disk import read_file
from resnet50_server.variants.spec import NAME, VariantSpec, official_specs, parse_variant
from resnet50_server.variants.transform_file import transform_json
from resnet50_server.variants.transform_text import parse_transform_text

from .flags import FLAGS

if TYPE_CHECKING:
    from resnet50_server.lifecycle.dry_run import DryRun

MIB = 2**20
# Of a phone; shows what a transform does with images of another shape than the network's input.
PHOTO = (3024, 4032)


@dataclass
class Report:
    """The facts of a variant, and its problems.

    Attributes:
        argument: The variant as the command was given it.
        spec: Its description; None if that is wrong.
        run: Its dry run; None if a server would not load it.
        problems: Why it would not be served, or not rightly.
    """

    argument: str
    spec: VariantSpec | None = None
    run: DryRun | None = None
    problems: list[str] = field(default_factory=list)


def check(
    variant: Annotated[
        str, typer.Argument(help="DIRECTORY, NAME=DIRECTORY, or a name from torchvision.")
    ],
    transform_text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the output of print(transform) for the evaluation transform of the"
            " training code; the variant's transform must be the same.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, max=600.0, help="Seconds to measure each batch size.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Device, as for `serve`.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="auto|fp32|fp16|bf16|int8", help="Precision, as for `serve`."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="auto|torch|onnxruntime|openvino", help="Engine, as for `serve`."),
    ] = None,
    weights_dir: Annotated[
        Path | None, typer.Option(help="Directory of official weights. Default: torch.hub's.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The server's configuration file (TOML).")
    ] = None,
) -> int:
    """Load a variant as a server would, measure it, and report whether it can be served.

    Settings come from the flags, the environment and the configuration file, as those of `serve`.
    Exit code 1: it cannot be served, or its transform is not that of --transform-text.
    """
    argument = _argument(variant)
    flags = {"device": device, "precision": precision, "engine": engine, "config": config}
    settings = FLAGS.read({**flags, "weights_dir": weights_dir, "variants": [argument]})
    report = Report(variant)
    _check(report, argument, settings, transform_text, seconds)
    if as_json:
        print(json.dumps(_as_json(report)))
    else:
        for line in _lines(report):
            print(line)
    return 1 if report.problems else 0


def _argument(variant: str) -> str:
    """Return the `--variants` value for a directory, which gives its name to the variant."""
    if "=" in variant or (variant in official_specs() and not Path(variant).is_dir()):
        return variant
    path = Path(variant)
    if not path.is_dir() and path.name == variant:
        return variant  # `parse_variant` says which names there are
    name = path.resolve().name
    usable = NAME.fullmatch(name) and name not in official_specs()
    return f"{name if usable else 'variant'}={variant}"


def _check(
    report: Report,
    argument: str,
    settings: Settings,
    transform_text: Path | None,
    seconds: float,
) -> None:
    """Fill a report."""
    from resnet50_server.lifecycle.load_errors import EXPECTED_ERRORS, error_text

    try:
        report.spec = spec = parse_variant(argument)
        if transform_text is not None:
            report.problems += _transform_problems(spec.transform, transform_text)
        from resnet50_server.lifecycle.dry_run import dry_run

        # Not asyncio.run, which waits for threads.
        loop = asyncio.new_event_loop()
        try:
            report.run = loop.run_until_complete(dry_run(spec, settings, seconds))
        finally:
            loop.close()
    except EXPECTED_ERRORS as error:
        report.problems.append(error_text(error))


def _transform_problems(served: Transform, path: Path) -> list[str]:
    """Say how the transform of training code differs from the one that would be served."""
    try:
        text = read_file(path, 2**20).decode(errors="replace")
    except OSError as error:
        raise WeightsError(f"transform-text: cannot read {path}: {error.strerror}") from error
    trained = parse_transform_text(text)
    if _same(trained, served):
        return []
    return [
        f"transform: variant.json says {served}; {path} says {trained}: put"
        f' "transform": {json.dumps(transform_json(trained))} into variant.json'
    ]


def _same(one: Transform, other: Transform) -> bool:
    """Return whether two transforms give the same pixels; numbers are shown rounded."""
    numbers = ((one.mean, other.mean), (one.std, other.std))
    if not all(
        math.isclose(a, b, abs_tol=1e-3) for pair in numbers for a, b in zip(*pair, strict=True)
    ):
        return False
    # Training code does not say what is behind transparent pixels.
    like_one = replace(other, mean=one.mean, std=one.std, background=one.background)
    return replace(one, crop=one.input_size) == replace(like_one, crop=other.input_size)


def _lines(report: Report) -> list[str]:
    """Return a report as lines, the last of which say OK, or what is wrong."""
    rows: dict[str, str] = {}
    if (spec := report.spec) is not None:
        some = ", ".join(spec.categories[:3]) + (", …" if len(spec.categories) > 3 else "")
        rows |= {
            "name": spec.name,
            "categories": f"{len(spec.categories)}: {some}",
            "transform": str(spec.transform),
            "photo": _photo(spec.transform),
        }
    if (run := report.run) is not None:
        built = run.built
        rows |= {
            "weights": f"{built.parameter_count:,} parameters, all finite, sha256 {built.digest}",
            "engine": f"{built.kind} on {built.device} in {built.precision},"
            f" {run.instances} at once; loaded in {run.load_s:.1f} s",
            "reference": "the output for fixed images is PyTorch's",
            "speed": ", ".join(
                f"{rate:.1f} images/s in batches of {size}"
                for size, rate in run.images_per_s.items()
            ),
            "memory": _memory(run),
        }
        if built.quantization is not None:
            rows["reference"] = (
                f"the top category of int8 is that of fp32 for {built.quantization.top_1:.1%}"
            )
    lines = [f"{key:12} {value}" for key, value in rows.items()]
    return [*lines, *(f"refused: {escaped(one)}" for one in report.problems)] + (
        [] if report.problems else ["OK"]
    )


def _photo(transform: Transform) -> str:
    """Say what the transform makes of a photo."""
    height, width = transform.resized(*PHOTO)
    input_height, input_width = transform.input_size
    text = f"{PHOTO[1]} x {PHOTO[0]} pixels are resized to {width} x {height}"
    if height < input_height or width < input_width:
        return f"{text} and padded to {input_width} x {input_height}"
    if (height, width) != transform.input_size:
        return f"{text} and cropped to {input_width} x {input_height}"
    return text


def _memory(run: DryRun) -> str:
    parts = [f"estimated {run.built.memory_bytes // MIB} MiB"]
    if run.device_bytes is not None:
        parts.append(f"{run.device_bytes // MIB} MiB of the GPU")
    if run.resident_bytes is not None and run.peak_bytes is not None:
        before, after = run.resident_bytes
        parts.append(
            f"the process grew from {before // MIB} to {after // MIB} MiB, libraries included, and"
            f" had {run.peak_bytes // MIB} MiB at most"
        )
    return "; ".join(parts)


def _as_json(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {
        "variant": report.argument,
        "ok": not report.problems,
        "problems": report.problems,
    }
    if (spec := report.spec) is not None:
        found |= {
            "name": spec.name,
            "category_count": len(spec.categories),
            "transform": transform_json(spec.transform),
            "input_size": list(spec.transform.input_size),
        }
    if (run := report.run) is not None:
        built = run.built
        found |= {
            "digest": built.digest,
            "parameter_count": built.parameter_count,
            "engine": built.kind,
            "device": built.device,
            "precision": built.precision,
            "instances": run.instances,
            "load_s": run.load_s,
            "images_per_s": {str(size): rate for size, rate in run.images_per_s.items()},
            "memory_bytes": {
                "estimated": built.memory_bytes,
                "before": run.resident_bytes[0] if run.resident_bytes else None,
                "after": run.resident_bytes[1] if run.resident_bytes else None,
                "peak": run.peak_bytes,
                "device": run.device_bytes,
            },
        }
    return found
