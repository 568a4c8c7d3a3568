"""Settings of a worker: a server's, without limits on how long an image waits."""

from __future__ import annotations

import os
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from resnet50_server.settings import ENV_PREFIX, Settings
from resnet50_settings.problems import line_of

DEFAULT_VARIANT = "IMAGENET1K_V2"
# A worker computes what it has read; no client waits for it.
_PATIENT = {"max_queue_wait_s": 1e9, "max_queue_size": 2**31}


def worker_settings(variant: str | None, options: dict[str, Any]) -> Settings:
    """Return the settings of a worker, from options and the environment.

    Args:
        variant: As of --variants; None for the first one in the environment, or IMAGENET1K_V2.
        options: Settings by name.

    Raises:
        ValueError: A value or a name is wrong; says which, on one line.
    """
    values = options | _PATIENT
    if variant is not None:
        values["variants"] = [variant]
    elif not os.environ.get(f"{ENV_PREFIX}VARIANTS") and "config" not in options:
        values.setdefault("variants", [DEFAULT_VARIANT])
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ValueError("; ".join(map(line_of, error.errors()))) from error
    except SettingsError as error:
        raise ValueError(str(error)) from error
