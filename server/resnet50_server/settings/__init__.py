"""The server's settings: the modules beside this one declare them, this one reads and checks."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from .batching import Batching
from .cache import Cache
from .compute import Compute
from .general import General
from .limits import Limits
from .network import Authentication, Network
from .observability import Observability
from .timeouts import Timeouts
from .variants import Variants

ENV_PREFIX = "RESNET50_"
# Variables of the client, which may share an environment with a server; tests/packaging compares.
CLIENT_ENVIRONMENT = (
    *("SERVER", "PROFILE", "PROFILE_FILE", "TIMEOUT_S", "PRIORITY", "TLS", "CA", "CERT", "KEY"),
    *("CALLER_KEY", "TOKEN", "TOKEN_FILE", "SERVER_NAME", "INSECURE_TOKEN", "METRICS"),
    *("VARIANT", "COMPRESSION", "WAIT_FOR_READY"),
)
# Variables of the gateway, which checks them.
GATEWAY_PREFIX = "RESNET50_GATEWAY_"
# Variables that Kubernetes sets in every pod if there is a Service named "resnet50".
_SERVICE_LINK = re.compile(r"RESNET50_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+)")

# Less holds fewer than a hundred embeddings; most likely megabytes were meant.
MIN_CACHE_BYTES = 2**20
_ENDPOINT = re.compile(r"https?://[^/\s]+/?")
GATEWAY_MODULES = ("starlette", "uvicorn", "httptools", "websockets", "python_multipart")
OTLP_EXPORTER = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"


def _is_host_and_port(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return bool(colon and host and port.isdecimal() and int(port) <= 65535)


class Settings(
    Network,
    Authentication,
    Variants,
    Compute,
    Batching,
    Limits,
    Timeouts,
    Cache,
    Observability,
    General,
    BaseSettings,
):
    """All options of `resnet50-server serve`.

    Each is a flag (--max-batch-size), an environment variable (RESNET50_MAX_BATCH_SIZE; lists are
    separated by commas) and a key of the TOML file that --config names (max_batch_size). Flags
    override the environment, which overrides the file.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        env_ignore_empty=True,
        frozen=True,
        allow_inf_nan=False,  # clocks, counters and other processes take finite numbers
    )

    @property
    def stub_engine(self) -> bool:
        """Return whether the engine has no weights and no network, so that torch is not needed."""
        return self.engine in ("null", "timed")

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

    @field_validator("http_listen")
    @classmethod
    def _http_address(cls, address: str | None) -> str | None:
        if address is None:
            return None
        if not _is_host_and_port(address):
            raise ValueError(f"{address!r} is not host:port, such as 127.0.0.1:8080")
        if not all(map(_installed, GATEWAY_MODULES)):
            raise ValueError("the gateway needs the extra: install resnet50-serving[http]")
        return address

    @field_validator("otlp_endpoint")
    @classmethod
    def _traceable(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        if not _ENDPOINT.fullmatch(endpoint):
            raise ValueError(f"{endpoint!r} is neither http://host:port nor https://host:port")
        if not _installed(OTLP_EXPORTER):
            raise ValueError(
                "tracing needs OpenTelemetry: install resnet50-serving with the extra [otel]"
            )
        return endpoint

    @model_validator(mode="after")
    def _coherent(self) -> Settings:
        if self.variants_file is not None:
            self._require_one_source()
        elif not self.variants:
            raise ValueError(
                "variants: name at least one, such as --variants IMAGENET1K_V2,"
                " --variants mine=DIRECTORY or --variants untrained=random:0, or declare them in"
                " --variants-file"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ValueError(f"{given}: needs {missing} as well; TLS takes both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError(
                "tls_client_ca: needs tls_cert and tls_key; client certificates are part of TLS"
            )
        if self.variants_dir is not None and self.tokens_file is None:
            raise ValueError(
                "variants_dir: needs tokens_file, because loading variants takes a token with the"
                " scope admin (resnet50-server tokens new NAME --scope admin --file FILE)"
            )
        if self.watch_variants_s and self.variants_dir is None:
            raise ValueError("watch_variants_s: needs variants_dir, the directory to poll")
        if self.evict_variants and not self.max_variants_bytes:
            raise ValueError(
                "evict_variants: needs max_variants_bytes, the limit beyond which it evicts"
            )
        if 0 < self.response_cache_bytes < MIN_CACHE_BYTES:
            raise ValueError(
                f"response_cache_bytes: {self.response_cache_bytes} is too small to be useful;"
                f" set at least {MIN_CACHE_BYTES}, or 0 to disable the cache"
            )
        if self.max_decode_pixels is not None and self.max_decode_pixels < self.max_image_pixels:
            raise ValueError(
                f"max_decode_pixels: {self.max_decode_pixels} is less than max_image_pixels"
                f" ({self.max_image_pixels}); set at least that"
            )
        if self.max_jpeg_pixels is not None and self.max_jpeg_pixels < self.max_image_pixels:
            raise ValueError(
                f"max_jpeg_pixels: {self.max_jpeg_pixels} is less than max_image_pixels"
                f" ({self.max_image_pixels}); set at least that"
            )
        if self.max_receive_bytes < self.max_message_bytes:
            raise ValueError(
                f"max_receive_bytes: {self.max_receive_bytes} is less than max_message_bytes"
                f" ({self.max_message_bytes}); set at least that"
            )
        return self

    def _require_one_source(self) -> None:
        """Refuse settings that would change the variants beside `variants_file`."""
        for name, key in (("variants", "[[variant]]"), ("default_variant", "default")):
            if getattr(self, name):
                raise ValueError(
                    f"{name}: is declared by variants_file; remove {name}"
                    f" ({ENV_PREFIX}{name.upper()}), and set {key} in the file"
                )
        if self.watch_variants_s:
            raise ValueError(
                "watch_variants_s: variants_file declares the variants and is watched; remove one"
                " of them"
            )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by falling priority: flags, environment, the file of `--config`."""
        return init_settings, env_settings, _ConfigFile(settings_cls)


class _ConfigFile(PydanticBaseSettingsSource):
    """The TOML file; its path comes from the sources of higher priority."""

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
    except ModuleNotFoundError:  # nor its parent package
        return False


def unknown_environment() -> list[str]:
    """Return the environment variables with our prefix that are no setting, as if misspelt."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    known |= {ENV_PREFIX + name for name in CLIENT_ENVIRONMENT}
    # pydantic reads the environment in any case, so names are compared in upper case.
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX)
        and not name.upper().startswith(GATEWAY_PREFIX)
        and name.upper() not in known
        and not _SERVICE_LINK.fullmatch(name)
    )
