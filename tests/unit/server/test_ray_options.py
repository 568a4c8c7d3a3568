"""Options of a Ray deployment: what they refuse, and the flags of its servers."""

from __future__ import annotations

import pytest
import yaml

from resnet50_server.ray.options import RayOptions, VariantConfig, WrongOptions, read_options
from resnet50_server.ray.yaml_file import application_yaml


def test_settings_become_flags_of_the_server():
    settings = {
        "variants": ["a=random:1", "b=random:2"],
        "oip": True,
        "listen_while_loading": False,
        "max_batch_size": 8,
        "tls_cert": None,
    }
    assert RayOptions(settings=settings, num_cpus=2.5, drain_timeout_s=7).flags() == [
        *("--variants=a=random:1", "--variants=b=random:2", "--oip", "--no-listen-while-loading"),
        *("--max-batch-size=8", "--engine-threads=2", "--metrics-listen=127.0.0.1:0"),
        "--drain-timeout-s=7.0",
    ]


def test_threads_are_left_to_the_server_on_a_gpu():
    flags = RayOptions(num_gpus=1).flags()
    assert not any("threads" in flag for flag in flags)


def test_given_threads_and_metrics_are_kept():
    settings = {"engine_threads": 3, "metrics_listen": "0.0.0.0:9464"}
    flags = RayOptions(settings=settings).flags()
    assert flags[:2] == ["--engine-threads=3", "--metrics-listen=0.0.0.0:9464"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"settings": {"max_bach_size": 1}}, "unknown setting max_bach_size"),
        ({"settings": {"listen": ["a:1"]}}, "listen is set by each replica; set port"),
        ({"settings": {"drain_timeout_s": 1}}, "drain_timeout_s is set by each replica"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas: is 2, must be at least"),
        ({"num_gpu": 1}, "num_gpu"),
        ({"settings": {"max_batch_size": 0}}, "settings: max_batch_size: .* greater than"),
        ({"user_config": {"variant": "a"}}, "variant"),
    ],
)
def test_wrong_options_are_refused(options, text):
    with pytest.raises(WrongOptions, match=text) as refused:
        read_options(options)
    assert len(str(refused.value).splitlines()) == 1


def test_settings_that_other_files_complete_are_left_to_the_nodes(tmp_path):
    settings = {"tls_cert": "/nodes/only.crt", "config": str(tmp_path / "nodes-only.toml")}
    assert read_options({"settings": settings}).settings == settings


def test_only_options_of_servers_replace_them():
    options = RayOptions(settings={"engine": "null"})
    scaled = RayOptions(
        settings={"engine": "null"},
        min_replicas=2,
        max_replicas=5,
        target_queue_age_s=1,
        user_config=VariantConfig(variants=("a",)),
    )
    assert scaled.of_replica() == options.of_replica() == {"settings": {"engine": "null"}}
    assert RayOptions(**options.of_replica()) == options


def test_yaml_has_the_options_and_the_user_config():
    config = VariantConfig(variants=("digits",), default="digits")
    options = RayOptions(
        settings={"variants": ["IMAGENET1K_V2"]}, max_replicas=4, user_config=config
    )
    assert yaml.safe_load(application_yaml("shop", options)) == {
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": "shop",
                "route_prefix": None,
                "import_path": "resnet50_server.ray.application:build",
                "args": {"settings": {"variants": ["IMAGENET1K_V2"]}, "max_replicas": 4},
                "deployments": [
                    {
                        "name": "server",
                        "user_config": {"variants": ["digits"], "default": "digits"},
                    }
                ],
            }
        ],
    }


def test_yaml_has_a_fixed_number_where_a_change_restarts_no_server():
    options = RayOptions(settings={"engine": "null"}, min_replicas=2)
    (application,) = yaml.safe_load(application_yaml("shop", options))["applications"]
    assert application["args"] == {"settings": {"engine": "null"}}
    assert application["deployments"] == [{"name": "server", "num_replicas": 2}]
