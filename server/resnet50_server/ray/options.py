"""Options of a deployment: resources, scaling, and the settings of its servers."""

from __future__ import annotations

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import SettingsError

from resnet50_server.settings import Settings
from resnet50_settings.problems import line_of

APP = "resnet50"
IMPORT_PATH = "resnet50_server.ray.application:build"
DEPLOYMENT = "server"
# Set by the replica.
RESERVED = ("listen", "drain_timeout_s", "stop_with_stdin")


class WrongOptions(ValueError):
    """Options are wrong.

    Args:
        problems: A line for each of them.

    Attributes:
        problems: A line for each of them.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class VariantConfig(BaseModel):
    """Variants of the servers, which change without a restart: the `user_config` of Ray Serve.

    Attributes:
        variants: Names of variants in `variants_dir` that are loaded beside those of the settings.
        default: Name of the default variant; None for that of the settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variants: tuple[str, ...] = ()
    default: str | None = None


class RayOptions(BaseModel):
    """Options of a deployment, as `args` of an application in Ray Serve's YAML.

    Attributes:
        settings: Settings of `resnet50-server serve` by name, e.g. {"variants": ["IMAGENET1K_V2"]}.
            Paths are those of the nodes.
        min_replicas: Least number of servers.
        max_replicas: Greatest number of servers; `min_replicas` by default, without autoscaling.
        num_cpus: CPUs of a server; without a GPU, also the number of its engine's threads.
        num_gpus: GPUs of a server. Ray only accounts for fractions of one.
        port: Port of each server, one on a node; 0 for any free port, and any number on a node.
        drain_timeout_s: Time limit in seconds for the calls in flight of a server that is stopped.
        target_queue_age_s: Servers are added while images wait for longer than this, in seconds.
        min_busy_ratio: A server is removed while the engines of all compute for less than this
            share of the time, 0 to 1.
        upscale_delay_s: Seconds for which images have to wait before servers are added.
        downscale_delay_s: Seconds for which engines have to be idle before a server is removed.
        admin_token_file: File on the nodes with a token of the scope admin, for `user_config`.
        user_config: Variants beside those of the settings. In YAML it belongs to the deployment
            "server", where a change restarts no server.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = Field(default_factory=dict)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    num_cpus: float = Field(default=1.0, gt=0)
    num_gpus: float = Field(default=0.0, ge=0)
    port: int = Field(default=0, ge=0, le=65535)
    drain_timeout_s: float = Field(default=30.0, ge=0, le=86400)
    target_queue_age_s: float = Field(default=0.1, gt=0)
    min_busy_ratio: float = Field(default=0.3, ge=0, le=1)
    upscale_delay_s: float = Field(default=5.0, ge=0)
    downscale_delay_s: float = Field(default=120.0, ge=0)
    admin_token_file: str | None = None
    user_config: VariantConfig | None = None

    @field_validator("settings")
    @classmethod
    def _known(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name in settings:
            if name not in Settings.model_fields:
                raise ValueError(f"unknown setting {name}; docs/reference/settings.md has them all")
            if name in RESERVED:
                advice = "port" if name == "listen" else name
                reason = f"; set {advice} of the deployment" if advice in cls.model_fields else ""
                raise ValueError(f"{name} is set by each replica{reason}")
        if problems := _wrong_values(settings):
            raise ValueError("; ".join(problems))
        return settings

    @model_validator(mode="after")
    def _ordered(self) -> RayOptions:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas: is {self.max_replicas}, must be at least min_replicas,"
                f" {self.min_replicas}"
            )
        return self

    def of_replica(self) -> dict[str, Any]:
        """Return the options that a replica needs: if they change, servers are replaced."""
        names = {"settings", "num_cpus", "num_gpus", "port", "drain_timeout_s", "admin_token_file"}
        return self.model_dump(include=names, exclude_defaults=True)

    def flags(self) -> list[str]:
        """Return the settings as flags of `resnet50-server serve`."""
        settings = dict(self.settings)
        if not self.num_gpus:
            settings.setdefault("engine_threads", max(1, int(self.num_cpus)))
        if settings.get("metrics_listen") is None:  # the replica reads them
            settings["metrics_listen"] = "127.0.0.1:0"
        settings["drain_timeout_s"] = self.drain_timeout_s
        flags = []
        for name, value in settings.items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                flags.append(flag if value else f"--no-{flag[2:]}")
            elif isinstance(value, (list, tuple)):
                flags += [f"{flag}={one}" for one in value]
            elif value is not None:
                flags.append(f"{flag}={value}")
        return flags


def read_options(values: dict[str, Any]) -> RayOptions:
    """Return options.

    Args:
        values: Their values by name.

    Raises:
        WrongOptions: A name or a value is wrong.
    """
    try:
        return RayOptions(**values)
    except ValidationError as error:
        raise WrongOptions(list(map(line_of, error.errors()))) from error


def _wrong_values(settings: dict[str, Any]) -> list[str]:
    """Return a line for each value that no node would accept.

    Other sources of settings and checks of several settings are left to the nodes: their
    environment and files are not those of this process.
    """
    try:
        Settings(**settings)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        return [line_of(one) for one in problems if one["loc"] and one["loc"][0] in settings]
    except (SettingsError, ValueError):
        return []  # of a file or of the environment
    return []
