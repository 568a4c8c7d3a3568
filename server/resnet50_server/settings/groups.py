"""Groups of options: name, type, default, limits and help text of each, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from resnet50_settings.groups import Group

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
EngineKind = Literal["auto", "torch", "onnxruntime", "openvino", "null", "timed"]


class Variants(Group):
    """Variants to serve, their files and their memory."""

    title = "Variants and weights"

    variants: Annotated[
        list[str],
        NoDecode,
        Field(
            description="Variant to serve: a name from torchvision, NAME=DIRECTORY or"
            " NAME=random:SEED. Repeat for several. This or --variants-file is required.",
        ),
    ] = []
    default_variant: Annotated[
        str | None,
        Field(description="Variant of requests that name none. Default: the first of --variants."),
    ] = None
    variants_file: Annotated[
        Path | None,
        Field(
            description="TOML file that declares variants, default and traffic splits, instead of"
            " --variants and --default-variant. Its changes are applied while serving:"
            " docs/reference/variants-file.md."
        ),
    ] = None
    variants_dir: Annotated[
        Path | None,
        Field(
            description="Directory of variant directories from which LoadVariant loads by name."
            " Clients need a token with the scope admin. Default: variants cannot be changed while"
            " serving."
        ),
    ] = None
    watch_variants_s: Annotated[
        float,
        Field(
            ge=0,
            le=10**6,
            description="Poll interval for --variants-dir, in seconds. New and changed directories"
            " are loaded, removed ones unloaded. 0: disabled.",
        ),
    ] = 0.0
    max_variants_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Memory limit for all variants together, in bytes, by the estimates that"
            " `resnet50 variants` shows. Loads beyond it are rejected. 0: no limit.",
        ),
    ] = 0
    evict_variants: Annotated[
        bool,
        Field(
            description="Evict the least recently used variants (never the default one) when"
            " --max-variants-bytes is exceeded, instead of rejecting the load."
        ),
    ] = False
    weights_dir: Annotated[
        Path | None,
        Field(description="Directory of torchvision's weight files. Default: torch.hub's."),
    ] = None
    download: Annotated[bool, Field(description="Download missing official weights.")] = True


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


class Batching(Group):
    """Dynamic batching and its queue."""

    title = "Batching"

    max_batch_size: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Maximum batch size: images that dynamic batching computes together.",
        ),
    ] = 32
    max_queue_delay_ms: Annotated[
        float,
        Field(
            ge=0,
            le=10_000,
            description="Batch window: maximum time that an idle engine waits for a batch to fill,"
            " in milliseconds.",
        ),
    ] = 0.0
    max_queue_size: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum queued single-image requests per variant; further ones are"
            " rejected. Frames of streams do not count.",
        ),
    ] = 512
    max_queue_wait_s: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum expected queueing time of a request without a deadline, in"
            " seconds; beyond it the request is rejected.",
        ),
    ] = 30.0


class Cache(Group):
    """Response cache in memory, graph cache on disk."""

    title = "Cache"

    response_cache_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Memory for the response cache, in bytes: repeated images are answered"
            " without computing them, identical requests in flight are coalesced, and the least"
            " recently used results are evicted. 0: disabled.",
        ),
    ] = 0
    graph_cache_dir: Annotated[
        Path | None,
        Field(
            description="Directory of the graph cache: networks exported for the CPU engines."
            " Default: the user's cache directory (XDG_CACHE_HOME)."
        ),
    ] = None
    max_graph_cache_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Maximum size of the graph cache, in bytes; beyond it the least recently"
            " used graphs are removed. A float variant takes 100 MB.",
        ),
    ] = 4 * 2**30


class Observability(Group):
    """Logs, metrics and traces."""

    title = "Observability"

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="Minimum level of log messages. debug logs a line per request."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Field(description="Format of log lines. json: one object per line, with fields."),
    ] = "text"
    metrics_listen: Annotated[
        str | None,
        Field(
            description="Address of /metrics, /livez (liveness) and /readyz (readiness) over"
            " plaintext HTTP: host:port, or host:0 (a free port, printed at the start). Default:"
            " disabled."
        ),
    ] = None
    channelz: Annotated[
        bool,
        Field(description="Enable gRPC channelz for clients with the scope admin."),
    ] = False
    otlp_endpoint: Annotated[
        str | None,
        Field(
            description="Endpoint for OpenTelemetry traces over OTLP/gRPC, such as"
            " http://localhost:4317. Needs the extra `otel`. Default: tracing is disabled.",
        ),
    ] = None
    trace_ratio: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of calls to trace, from 0 to 1, unless the client has decided"
            " (traceparent).",
        ),
    ] = 0.01


class General(Group):
    """The configuration file, and the process."""

    title = "General"

    config: Annotated[
        Path | None,
        Field(description="TOML file with these settings, named with underscores."),
    ] = None
    stop_with_stdin: Annotated[
        bool,
        Field(
            description="Stop, as on SIGTERM, when standard input ends: for a parent process that"
            " keeps the other end of a pipe, and may be killed."
        ),
    ] = False
