"""The application of Ray Serve: one deployment, whose replicas are servers."""

from __future__ import annotations

import hashlib
import json
import warnings
from importlib.metadata import version
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from .load import QueueAgePolicy
from .options import DEPLOYMENT, RayOptions, VariantConfig, read_options
from .process import KILL_GRACE_S
from .replica import ServerReplica

HEALTH_CHECK_PERIOD_S = 2.0
# Attempts to start a replica of a new deployment; then it has failed.
START_ATTEMPTS = 3
# Replicas report their load this often; it is aggregated over the look-back period.
REPORT_S = 2.0
LOOK_BACK_S = 10.0


def build(options: RayOptions | dict[str, Any]) -> serve.Application:
    """Return the application; `import_path` of it in YAML, with the options as `args`.

    Args:
        options: Resources, scaling, settings of the servers; Ray passes `args` as they are.

    Raises:
        WrongOptions: An option of the `args` is wrong.
    """
    if isinstance(options, dict):
        options = read_options(options)
    arguments: dict[str, Any] = {
        "name": DEPLOYMENT,
        "ray_actor_options": {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": options.drain_timeout_s + 2 * KILL_GRACE_S,
        "max_constructor_retry_count": START_ATTEMPTS,
    }
    if options.port:
        arguments["max_replicas_per_node"] = 1
    most = options.max_replicas or options.min_replicas
    if most == options.min_replicas:
        arguments["num_replicas"] = most
    else:
        arguments["autoscaling_config"] = _autoscaling(options, most)
    # Also an empty one, which undoes an earlier one: Ray tells replicas of no removal.
    arguments["user_config"] = (options.user_config or VariantConfig()).model_dump()
    deployment = serve.deployment(ServerReplica, **arguments)
    # `serve.run` would choose a new version each time, and a new version replaces all servers.
    deployment._version = _version(options)
    return deployment.bind(options.of_replica())


def _version(options: RayOptions) -> str:
    """Return the version of the servers: of this distribution, with their options."""
    text = json.dumps([version("resnet50-serving"), options.of_replica()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _autoscaling(options: RayOptions, most: int) -> AutoscalingConfig:
    policy = AutoscalingPolicy(
        policy_function=QueueAgePolicy,
        policy_kwargs={
            "target_queue_age_s": options.target_queue_age_s,
            "min_busy_ratio": options.min_busy_ratio,
        },
    )
    with warnings.catch_warnings():
        # Of the interval, in favour of an environment variable of the whole cluster.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=most,
            metrics_interval_s=REPORT_S,
            look_back_period_s=LOOK_BACK_S,
            aggregation_function="max",
            upscale_delay_s=options.upscale_delay_s,
            downscale_delay_s=options.downscale_delay_s,
            policy=policy,
        )
