"""Calls of every shape through a load balancer whose servers are drained, killed and started."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from tests.e2e.proxies.balancers import Addresses, Balancer, Running
from tests.e2e.proxies.callers import SHAPES, Caller, NotAsPromised
from tests.e2e.proxies.servers import Backend
from tests.e2e.proxies.waiting import PATIENCE_S, wait_until


def run(balancer: Balancer, folder: Path) -> int:
    """Run the trial, print the outcomes of its calls, and return how many failed."""
    addresses = Addresses.free()
    backends = [
        Backend(name, *ports)
        for name, *ports in zip(("one", "two"), addresses.backs, addresses.metrics, strict=True)
    ]
    with contextlib.ExitStack() as stack:
        for backend in backends:
            stack.callback(backend.kill)
            backend.start()
        for backend in backends:
            backend.wait()
        running = stack.enter_context(balancer.running(addresses, folder))
        callers = [
            Caller(name, shape, due, running.address) for name, (shape, due) in SHAPES.items()
        ]
        for caller in callers:
            caller.start()
        try:
            _phases(callers, backends, running)
        except NotAsPromised as error:
            callers[0].failures.append(error)
        finally:
            _stop(callers)
        log = running.log()
    return _report(callers, log)


def _phases(callers: list[Caller], backends: list[Backend], running: Running) -> None:
    name = running.balancer.name
    _go_on(callers, "both servers answer")
    one, two = backends
    for backend, end in ((one, one.drain), (two, two.drain), (one, one.kill)):
        end()
        _go_on(callers, f"server {backend.name}: {end.__name__}; the other one answers")
        backend.start()
        backend.wait()
        _answers_of(callers, backend.name)
        _go_on(callers, f"server {backend.name} is back")
    if running.balancer.reload is not None:
        running.reload()
        _go_on(callers, f"{name} was reloaded")


def _go_on(callers: list[Caller], phase: str) -> None:
    """Wait until each caller has got its answers of a phase."""
    print(f"    {phase}", flush=True)
    goals = {caller: caller.answers.total() + caller.answers_due for caller in callers}
    wait_until(
        lambda: [one.name for one in callers if one.answers.total() < goals[one]],
        f"too few answers while {phase}",
    )


def _answers_of(callers: list[Caller], server: str) -> None:
    """Wait until a server gets calls again."""
    before = sum(caller.answers[server] for caller in callers)
    wait_until(
        lambda: [] if sum(one.answers[server] for one in callers) > before else [server],
        "gets no calls",
    )


def _stop(callers: list[Caller]) -> None:
    for caller in callers:
        caller.stopped = True
    for caller in callers:
        caller.join(PATIENCE_S)
        if caller.is_alive():
            caller.failures.append(NotAsPromised("does not come to its end"))


def _report(callers: list[Caller], log: str) -> int:
    print(f"\n{'calls':<18}{'server one':>12}{'server two':>12}{'failed':>8}")
    for caller in callers:
        one, two = caller.answers["one"], caller.answers["two"]
        if "either" in caller.answers:
            one = two = caller.answers["either"]
        elif not (one and two):
            caller.failures.append(NotAsPromised("only one server answered"))
        print(f"{caller.name:<18}{one:>12}{two:>12}{len(caller.failures):>8}")
    for caller in callers:
        for error in caller.failures[:3]:
            print(f"{caller.name}: {type(error).__name__}: {error}", file=sys.stderr)
    failed = sum(len(caller.failures) for caller in callers)
    if failed:
        print(f"end of the log:\n{log[-4000:]}", file=sys.stderr)
    answered = sum(caller.answers.total() for caller in callers)
    print(f"{answered} answers, {failed} failed calls")
    return failed
