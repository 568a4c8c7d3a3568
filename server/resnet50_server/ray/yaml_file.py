"""The file for `serve deploy` and for a RayService."""

from __future__ import annotations

from typing import Any

import yaml

from .options import DEPLOYMENT, IMPORT_PATH, RayOptions


def application_yaml(app: str, options: RayOptions) -> str:
    """Return the configuration of Ray Serve, with one application.

    Args:
        app: Name of the application.
        options: Options of its deployment.
    """
    application: dict[str, Any] = {
        "name": app,
        "route_prefix": None,
        "import_path": IMPORT_PATH,
        "args": options.model_dump(mode="json", exclude_defaults=True, exclude={"user_config"}),
    }
    if options.user_config is not None:
        config = options.user_config.model_dump(mode="json")
        application["deployments"] = [{"name": DEPLOYMENT, "user_config": config}]
    found: str = yaml.safe_dump(
        {"proxy_location": "Disabled", "applications": [application]}, sort_keys=False
    )
    return found
