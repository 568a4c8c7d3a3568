from __future__ import annotations

from resnet50_bench.calls import connection_of
from resnet50_bench.plan import Load, Plan
from resnet50_client._profiles import Profile


def test_connection_options_of_a_profile_apply_to_a_benchmark():
    profile = Profile(
        server=("a:1",),
        timeout_s=1.0,
        priority="bulk",
        caller_key="user-1",
        insecure_token=True,
        token="secret",
        variant="other",
        compression="gzip",
        wait_for_ready=True,
    )
    plan = Plan(load=Load(concurrency=1), servers=("localhost:1",))
    connection = connection_of(plan, profile)
    assert connection.addresses == plan.servers
    assert (connection.timeout_s, connection.retry.attempts) == (plan.timeout_s, 1)
    assert (connection.priority, connection.caller_key) == ("bulk", "user-1")
    assert connection.metadata()[0] == ("authorization", "Bearer secret")
    assert (connection.channel.compression, connection.channel.wait_for_ready) == ("gzip", True)
    assert connection.variant is None
