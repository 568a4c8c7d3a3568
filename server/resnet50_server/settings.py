"""Everything that can be set, declared once: flag, environment name, file key, default and help."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliImplicitFlag,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

ENV_PREFIX = "RESNET50_"
# Read by the client, which may share an environment with a server; tests/packaging compares.
CLIENT_ENVIRONMENT = (
    *("SERVER", "PROFILE", "PROFILE_FILE", "TIMEOUT_S", "PRIORITY", "TLS", "CA", "CERT", "KEY"),
    *("CALLER_KEY", "TOKEN", "TOKEN_FILE", "SERVER_NAME", "INSECURE_TOKEN", "METRICS"),
)
# What Kubernetes puts into every pod beside a Service named "resnet50".
_SERVICE_LINK = re.compile(r"RESNET50_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+)")

# Less holds no hundred embeddings, and is most likely meant to be megabytes.
MIN_CACHE_BYTES = 2**20
_ENDPOINT = re.compile(r"https?://[^/\s]+/?")
OTLP_EXPORTER = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
EngineKind = Literal["auto", "torch", "onnxruntime", "openvino", "null", "timed"]


def _is_host_and_port(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return bool(colon and host and port.isdecimal() and int(port) <= 65535)


class Settings(BaseSettings):
    """Serve variants over gRPC until SIGTERM, then answer what was accepted and stop.

    Each option is also an environment name (--max-batch-size: RESNET50_MAX_BATCH_SIZE; lists are
    separated by commas) and a key of the TOML file that --config names (max_batch_size). Flags beat
    the environment, the environment beats the file.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        env_ignore_empty=True,
        frozen=True,
    )

    listen: Annotated[
        list[str],
        NoDecode,
        Field(
            min_length=1,
            description="Where to listen: host:port, host:0 (a free port, printed) or unix:PATH;"
            " repeat for several.",
        ),
    ] = ["127.0.0.1:50051"]
    tls_cert: Annotated[
        Path | None,
        Field(
            description="PEM: the server's certificate and those that lead to its CA. With it, all"
            " TCP addresses speak TLS. Read again when it changes."
        ),
    ] = None
    tls_key: Annotated[
        Path | None, Field(description="PEM: the private key of tls_cert, without a passphrase.")
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(
            description="PEM: CAs of clients. With it, only clients with a certificate of one are"
            " let in (mTLS)."
        ),
    ] = None
    allow_plaintext: Annotated[
        CliImplicitFlag[bool],
        Field(
            description="Whether addresses that other machines reach may do without TLS: anyone on"
            " the way can then read and change everything."
        ),
    ] = False
    tokens_file: Annotated[
        Path | None,
        Field(
            description="TOML: hashes of bearer tokens, made by `resnet50-server tokens new`. With"
            " it, every call needs a token. Read again when it changes."
        ),
    ] = None
    listen_while_loading: Annotated[
        CliImplicitFlag[bool],
        Field(
            description="Whether a server that still loads answers health checks and refuses calls;"
            " off, nothing listens until it is ready, for balancers that check no health, such as"
            " nginx."
        ),
    ] = True
    variants: Annotated[
        list[str],
        NoDecode,
        Field(
            description="A variant to serve: one of torchvision's names, NAME=DIRECTORY or"
            " NAME=random:SEED; repeat for several. At least one.",
        ),
    ] = []
    default_variant: Annotated[
        str | None,
        Field(description="Answers requests that name no variant; default: the first one."),
    ] = None
    variants_dir: Annotated[
        Path | None,
        Field(
            description="A folder of folders from which LoadVariant takes variants by name; callers"
            " need a token with the scope admin. Default: variants are not changed while serving."
        ),
    ] = None
    watch_variants_s: Annotated[
        float,
        Field(
            ge=0,
            le=10**6,
            description="Seconds between looks at variants_dir: a folder that appears or changes is"
            " loaded, in the place of what serves, and one that goes is unloaded. 0: only when"
            " LoadVariant asks.",
        ),
    ] = 0.0
    max_variants_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Memory that variants may take together, in bytes, as estimated"
            " (`resnet50 variants` shows it). One more is refused. 0: any.",
        ),
    ] = 0
    evict_variants: Annotated[
        CliImplicitFlag[bool],
        Field(
            description="Whether, instead, the variants that were asked for least recently are"
            " unloaded; never the default one."
        ),
    ] = False
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?)$",
            description="Where to compute: auto (CUDA if there is one), cpu, or cuda:N.",
        ),
    ] = "auto"
    precision: Annotated[
        Precision,
        Field(
            description="Arithmetic of float weights: auto is fp16 on CUDA and fp32 on the CPU."
            " int8 needs the CPU and --calibration-dir; torchvision's int8 weights always run so.",
        ),
    ] = "auto"
    engine: Annotated[
        EngineKind,
        Field(
            description="What computes: auto (on CUDA a graph per batch size, on the CPU the"
            " fastest that is as exact as torch), torch (eager), onnxruntime, openvino, null"
            " (constant answer, no weights) or timed (null, asleep for alpha + beta x batch).",
        ),
    ] = "auto"
    timed_alpha_ms: Annotated[
        float, Field(ge=0, description="Timed engine: cost of a batch, in milliseconds.")
    ] = 2.1
    timed_beta_ms: Annotated[
        float, Field(ge=0, description="Timed engine: cost of an image, in milliseconds.")
    ] = 0.147
    max_batch_size: Annotated[
        int, Field(ge=1, le=1024, description="Images in one batch, at most.")
    ] = 32
    max_queue_delay_ms: Annotated[
        float,
        Field(
            ge=0,
            le=10_000,
            description="How long a free engine waits for a batch to fill, in milliseconds.",
        ),
    ] = 0.0
    max_queue_size: Annotated[
        int,
        Field(
            ge=1,
            description="Single images that may wait per variant; one more is refused. Frames of"
            " streams count as requests only.",
        ),
    ] = 512
    max_queue_wait_s: Annotated[
        float,
        Field(
            gt=0,
            description="Longest expected wait of a request without a deadline, in seconds; one"
            " that would wait longer is refused.",
        ),
    ] = 30.0
    max_requests: Annotated[
        int,
        Field(
            ge=1,
            description="Requests in flight at once, and as many again whose message is still"
            " arriving; one more is refused.",
        ),
    ] = 1024
    max_request_bytes: Annotated[
        int, Field(ge=1, description="Bytes of images in flight at once, uploads as they arrive.")
    ] = 256 * 2**20
    max_receive_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="Memory for single messages that are arriving: it holds so many of"
            " max_message_bytes, and further calls wait their turn.",
        ),
    ] = 192 * 2**20
    max_streams: Annotated[
        int,
        Field(
            ge=1,
            description="Streams open at once; one more is refused. Each may hold three messages"
            " of max_message_bytes.",
        ),
    ] = 64
    max_uploads: Annotated[
        int,
        Field(
            ge=1,
            description="Uploads that arrive at once; one more is refused. Each may hold two"
            " messages of max_message_bytes.",
        ),
    ] = 32
    max_requests_per_caller: Annotated[
        int,
        Field(
            ge=1,
            description="As max_requests, of one caller: a token's, a certificate's or, without"
            " either, an address's. Behind a proxy that is everybody.",
        ),
    ] = 512
    max_request_bytes_per_caller: Annotated[
        int, Field(ge=1, description="As max_request_bytes, of one caller.")
    ] = 128 * 2**20
    max_receive_bytes_per_caller: Annotated[
        int, Field(ge=1, description="As max_receive_bytes, of one caller.")
    ] = 96 * 2**20
    max_streams_per_caller: Annotated[
        int, Field(ge=1, description="As max_streams, of one caller.")
    ] = 32
    max_uploads_per_caller: Annotated[
        int, Field(ge=1, description="As max_uploads, of one caller.")
    ] = 16
    max_rate_per_caller: Annotated[
        float,
        Field(
            ge=0,
            description="Images a second from one caller, frames included, with bursts of as many;"
            " 0: any.",
        ),
    ] = 0.0
    max_connections: Annotated[
        int, Field(ge=1, lt=2**31, description="Connections open at once per address listened on.")
    ] = 1024
    max_calls_per_connection: Annotated[
        int,
        Field(ge=1, lt=2**31, description="Calls open on one connection; more wait in the client."),
    ] = 1000
    max_connection_age_s: Annotated[
        float,
        Field(
            ge=0,
            le=10**6,
            description="Seconds after which a connection is renewed, so that clients balance anew;"
            " its calls have a minute to end. 0: never.",
        ),
    ] = 0.0
    connection_idle_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            le=10**6,
            description="Seconds without a call after which a connection is closed; 0: never.",
        ),
    ] = 600.0
    keepalive_s: Annotated[
        float,
        Field(
            ge=1,
            le=10**6,
            description="Seconds without a sign of life after which a peer is asked for one; it has"
            " 20 s.",
        ),
    ] = 60.0
    max_message_bytes: Annotated[
        int,
        Field(
            ge=1024,
            lt=2**31,
            description="Length of one gRPC message, in bytes; bounds raw images and frames. The"
            " default, gRPC's usual one, holds 1920 x 1080 in YUV 4:2:0; the SDK uploads larger"
            " files in chunks.",
        ),
    ] = 4 * 2**20
    max_image_bytes: Annotated[
        int, Field(ge=1, description="Length of one encoded image, in bytes.")
    ] = 32 * 2**20
    max_image_pixels: Annotated[
        int, Field(ge=1, description="Width x height of one image, in pixels.")
    ] = 50_000_000
    max_decode_pixels: Annotated[
        int | None,
        Field(
            ge=1,
            description="Pixels decoded at once, each of 22 bytes, small images apart; others wait"
            " for their turn. Default: one image of max_image_pixels.",
        ),
    ] = None
    max_frames_in_flight: Annotated[
        int, Field(ge=1, le=4096, description="Frames of one stream inside the server at once.")
    ] = 64
    receive_timeout_s: Annotated[
        float,
        Field(gt=0, description="Seconds that the message of a single request may take to arrive."),
    ] = 10.0
    send_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Seconds that a client may take to accept the answer of a call; then the"
            " call is cancelled.",
        ),
    ] = 30.0
    max_send_bytes: Annotated[
        int,
        Field(
            ge=2**20,
            description="Memory for answers that clients have not taken, in bytes; beyond it the"
            " oldest ones of the caller with the most are cancelled.",
        ),
    ] = 64 * 2**20
    upload_idle_timeout_s: Annotated[
        float, Field(gt=0, description="Seconds that an upload may pause before it is cut.")
    ] = 30.0
    upload_timeout_s: Annotated[
        float, Field(gt=0, description="Seconds that an upload may take in all.")
    ] = 600.0
    stream_idle_timeout_s: Annotated[
        float,
        Field(ge=0, description="Seconds that a stream may be silent before it is ended; 0: any."),
    ] = 0.0
    decode_threads: Annotated[
        int | None,
        Field(
            ge=1,
            description="Threads that decode; default: one per CPU of the budget (affinity and"
            " cgroup quota) beside a GPU, one per three beside an engine on the CPU.",
        ),
    ] = None
    decode_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Seconds that decoding one image may take, once it has a thread; another"
            " thread takes the place of one that is held for longer, up to a bound.",
        ),
    ] = 10.0
    response_cache_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Memory for answers, in bytes: an image that comes again is not computed"
            " again; the least recently used go first. 0: none are kept.",
        ),
    ] = 0
    instances: Annotated[
        int | None,
        Field(
            ge=1,
            description="Batches computed at once on the CPU; default: one per 8 CPUs of the"
            " budget (affinity and cgroup quota).",
        ),
    ] = None
    engine_threads: Annotated[
        int | None,
        Field(
            ge=1,
            description="Threads of one batch on the CPU; default: the CPU budget divided by"
            " instances.",
        ),
    ] = None
    engine_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            le=10**6,
            description="Seconds that one batch may take, or ten times what such batches have taken"
            " if that is more; then the server counts as hung, turns its callers away and exits. 0:"
            " any.",
        ),
    ] = 60.0
    calibration_dir: Annotated[
        Path | None,
        Field(description="Images from which int8 is made of float weights (--precision int8)."),
    ] = None
    min_int8_agreement: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of first categories that int8 made of float weights must keep; below"
            " it the server does not start.",
        ),
    ] = 0.9
    graph_cache_dir: Annotated[
        Path | None,
        Field(
            description="Where graphs made of weights are kept; default: the user's cache folder"
            " (XDG_CACHE_HOME)."
        ),
    ] = None
    max_graph_cache_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="What those graphs may take together, in bytes; beyond it those that were"
            " unused for longest are removed. One of 100 MB for each float variant.",
        ),
    ] = 4 * 2**30
    weights_dir: Annotated[
        Path | None,
        Field(description="Where torchvision's files lie; default: torch.hub's (TORCH_HOME)."),
    ] = None
    download: Annotated[
        CliImplicitFlag[bool], Field(description="Whether missing official weights are fetched.")
    ] = True
    drain_timeout_s: Annotated[
        float,
        Field(ge=0, description="After SIGTERM: seconds for accepted requests to be answered."),
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="How much is logged; debug is a line for each request."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Field(description="How it is written: json is an object a line, with fields."),
    ] = "text"
    metrics_listen: Annotated[
        str | None,
        Field(
            description="host:port, or host:0 (a free port, printed), for HTTP in clear text:"
            " /metrics, /livez and /readyz; default: none."
        ),
    ] = None
    channelz: Annotated[
        CliImplicitFlag[bool],
        Field(description="Whether gRPC's own channelz may be asked by callers with scope admin."),
    ] = False
    otlp_endpoint: Annotated[
        str | None,
        Field(
            description="Where OpenTelemetry traces go, by OTLP over gRPC, e.g."
            " http://localhost:4317 (needs the extra [otel]); default: nowhere, and nothing is"
            " recorded.",
        ),
    ] = None
    trace_ratio: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the calls that are traced, where the caller has not decided"
            " (traceparent).",
        ),
    ] = 0.01
    config: Annotated[
        Path | None, Field(description="A TOML file with these settings, named with underscores.")
    ] = None

    @field_validator("listen", "variants", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Split the commas of an environment value."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("listen")
    @classmethod
    def _addresses(cls, addresses: list[str]) -> list[str]:
        for address in addresses:
            if address.startswith("unix:") and len(address) > len("unix:"):
                continue
            if not _is_host_and_port(address):
                raise ValueError(f"{address!r} is neither host:port nor unix:PATH")
        return addresses

    @field_validator("metrics_listen")
    @classmethod
    def _metrics_address(cls, address: str | None) -> str | None:
        if address is not None and not _is_host_and_port(address):
            raise ValueError(f"{address!r} is not host:port, such as 127.0.0.1:9464")
        return address

    @field_validator("otlp_endpoint")
    @classmethod
    def _traceable(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        if not _ENDPOINT.fullmatch(endpoint):
            raise ValueError(f"{endpoint!r} is neither http://host:port nor https://host:port")
        if not _installed(OTLP_EXPORTER):
            raise ValueError("tracing needs OpenTelemetry: pip install 'resnet50-serving[otel]'")
        return endpoint

    @model_validator(mode="after")
    def _coherent(self) -> Settings:
        if not self.variants:
            raise ValueError(
                "variants: name at least one, such as --variants IMAGENET1K_V2,"
                " --variants mine=DIRECTORY or --variants untrained=random:0"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ValueError(f"{given}: needs {missing} beside it; TLS takes both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError(
                "tls_client_ca: needs tls_cert and tls_key; clients show their"
                " certificates within TLS only"
            )
        if self.variants_dir is not None and self.tokens_file is None:
            raise ValueError(
                "variants_dir: whoever loads variants needs a token with the scope admin; name a"
                " tokens_file (resnet50-server tokens new NAME --scope admin --file FILE)"
            )
        if self.watch_variants_s and self.variants_dir is None:
            raise ValueError("watch_variants_s: needs variants_dir, the folder to look at")
        if self.evict_variants and not self.max_variants_bytes:
            raise ValueError(
                "evict_variants: needs max_variants_bytes; without it nothing gives way"
            )
        if 0 < self.response_cache_bytes < MIN_CACHE_BYTES:
            raise ValueError(
                f"response_cache_bytes: {self.response_cache_bytes} bytes hold next to no answers;"
                f" allow at least {MIN_CACHE_BYTES}, or 0 to keep none"
            )
        if self.max_decode_pixels is not None and self.max_decode_pixels < self.max_image_pixels:
            raise ValueError(
                f"max_decode_pixels: {self.max_decode_pixels} does not hold one image of"
                f" max_image_pixels ({self.max_image_pixels}); allow at least that"
            )
        if self.max_receive_bytes < self.max_message_bytes:
            raise ValueError(
                f"max_receive_bytes: {self.max_receive_bytes} does not hold one message of"
                f" max_message_bytes ({self.max_message_bytes}); allow at least that"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the file that `--config` names below flags and environment."""
        return init_settings, env_settings, _ConfigFile(settings_cls)


class _ConfigFile(PydanticBaseSettingsSource):
    """The TOML file, read when the sources above it have said which."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Unused: the file is read whole."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        if path is None:
            return {}
        try:
            if not Path(path).is_file():
                raise ValueError("is not a file")
            return TomlConfigSettingsSource(self.settings_cls, Path(path))()
        except (OSError, ValueError) as error:  # TOML's and Unicode's errors are ValueErrors
            raise ValueError(f"config: {path}: {error}") from error


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it would lie in
        return False


def unknown_environment() -> list[str]:
    """Return environment names with our prefix that set nothing: misspelt ones, most likely."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    known |= {ENV_PREFIX + name for name in CLIENT_ENVIRONMENT}
    # Names are read in any case, so that is how they are judged.
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX)
        and name.upper() not in known
        and not _SERVICE_LINK.fullmatch(name)
    )
