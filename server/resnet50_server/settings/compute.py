"""The group of computation: device, engine, threads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from resnet50_settings.groups import Group

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
EngineKind = Literal["auto", "torch", "onnxruntime", "openvino", "null", "timed"]


class Compute(Group):
    """Device, precision, engine and threads."""

    title = "Compute"

    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?)$",
            description="Device: auto (CUDA if available), cpu or cuda:N.",
        ),
    ] = "auto"
    precision: Annotated[
        Precision,
        Field(
            description="Arithmetic for float weights. auto: fp16 on CUDA, fp32 on the CPU. int8"
            " needs the CPU and --calibration-dir. torchvision's int8 weights always run in int8.",
        ),
    ] = "auto"
    engine: Annotated[
        EngineKind,
        Field(
            description="Inference engine. auto: CUDA graphs, or on the CPU the fastest engine that"
            " matches PyTorch. torch: eager PyTorch. null: a constant result, no weights. timed:"
            " like null, but sleeps as long as --timed-alpha-ms and --timed-beta-ms say.",
        ),
    ] = "auto"
    timed_alpha_ms: Annotated[
        float, Field(ge=0, description="Timed engine: milliseconds per batch.")
    ] = 2.1
    timed_beta_ms: Annotated[
        float, Field(ge=0, description="Timed engine: milliseconds per image.")
    ] = 0.147
    instances: Annotated[
        int | None,
        Field(
            ge=1,
            description="Batches computed concurrently on the CPU. Default: one per 8 CPUs of the"
            " budget (affinity and cgroup quota).",
        ),
    ] = None
    engine_threads: Annotated[
        int | None,
        Field(
            ge=1,
            description="Threads per batch on the CPU. Default: the CPU budget divided by"
            " --instances.",
        ),
    ] = None
    decode_threads: Annotated[
        int | None,
        Field(
            ge=1,
            description="Worker threads that decode images. Default: one per CPU of the budget with"
            " a GPU, one per three CPUs with a CPU engine.",
        ),
    ] = None
    calibration_dir: Annotated[
        Path | None,
        Field(description="Directory of images that calibrate --precision int8 for float weights."),
    ] = None
    min_int8_agreement: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of images whose top category int8 must preserve, from 0 to 1; below"
            " it the server does not start.",
        ),
    ] = 0.9
