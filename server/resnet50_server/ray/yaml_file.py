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
    # Serve replaces all servers if the `args` change, and none for these two of the deployment.
    deployment: dict[str, Any] = {"name": DEPLOYMENT}
    others = {"user_config"}
    if options.max_replicas in (None, options.min_replicas):
        deployment["num_replicas"] = options.min_replicas
        others |= {"min_replicas", "max_replicas"}
    if options.user_config is not None:
        deployment["user_config"] = options.user_config.model_dump(mode="json")
    application = {
        "name": app,
        "route_prefix": None,
        "import_path": IMPORT_PATH,
        "args": options.model_dump(mode="json", exclude_defaults=True, exclude=others),
        "deployments": [deployment],
    }
    found: str = yaml.safe_dump(
        {"proxy_location": "Disabled", "applications": [application]}, sort_keys=False
    )
    return found
