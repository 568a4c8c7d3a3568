"""A network of its own for a trial: namespaces, links and their faults (Linux, iproute2, nftables).

    client ── router ── one
                   └─── two

The script runs once more by `unshare`, in a network, mount and process namespace of its own: that
network is the client's. The kernel takes all of it away with the last process in it, whichever way
that ends. The machine's own network is never touched, and any number of trials run side by side.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.delay_bridge import DelayBridge

_INSIDE = "RESNET50_NETFAULTS_INSIDE"
_PROGRAMS = {
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "ip": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
}
# Whichever process is killed, those that it started are, and the namespaces go with the last one.
_ISOLATED = [
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
]
# Dropped or refused on the router, in either direction; both ends keep their links and routes.
_TABLE = """
add table inet faults
add chain inet faults forward { type filter hook forward priority 0; policy accept; }
"""
CLIENT, ROUTER_TO_CLIENT = "10.77.0.2", "10.77.0.1"


def enter() -> Path:
    """Continue in new namespaces; returns there, and never outside.

    Returns:
        A folder for files, which goes with the namespaces.

    Raises:
        SystemExit: Outside, with the exit code from inside, or with the reason why there can be
            no namespaces.
    """
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if os.environ.pop(_INSIDE, None):
        for number in (signal.SIGINT, signal.SIGTERM):  # the kernel cleans up
            signal.signal(number, lambda got, _: os._exit(128 + got))
        # `ip netns` keeps its names there: those of other trials are hidden, and ours from them.
        run("mount", "-t", "tmpfs", "none", "/run")
        folder = Path("/run/trial")
        folder.mkdir()
        return folder
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed: apt-get install {package}")
    isolated, refused = _ISOLATED, _refusal(_ISOLATED)
    if refused:  # where the kernel allows it, root of a user namespace is enough
        isolated = [*_ISOLATED, "--user", "--map-root-user"]
        if _refusal(isolated):
            raise SystemExit(
                f"no network namespaces can be made here ({refused}): run it as root; in a"
                " container with --privileged, or CAP_SYS_ADMIN and CAP_NET_ADMIN"
            )
    process = subprocess.Popen(
        [*isolated, sys.executable, *sys.orig_argv[1:]], env=os.environ | {_INSIDE: "1"}
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the inner one as well
    signal.signal(signal.SIGTERM, lambda *_: process.kill())
    status = process.wait()
    raise SystemExit(status if status >= 0 else 128 - status)


def _refusal(isolated: Sequence[str]) -> str:
    """Return why a command cannot get a network namespace; empty if it can."""
    command = [*isolated, "ip", "link", "set", "lo", "up"]
    ended = subprocess.run(command, capture_output=True, text=True)
    return (ended.stderr.strip() or f"exit code {ended.returncode}") if ended.returncode else ""


def run(*command: str, given: str | None = None) -> str:
    """Run a command to its end; return what it prints.

    Raises:
        RuntimeError: It fails; says why.
    """
    ended = subprocess.run(command, input=given, capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr.strip()}")
    return ended.stdout


class Network:
    """A client's namespace, which is this process's, a router's, and one of each server.

    Args:
        servers: Their names.
        folder: For files.

    Attributes:
        addresses: Of each server, without a port.
        stopped: How many packets the faults have dropped or refused so far.
    """

    def __init__(self, servers: Sequence[str], folder: Path) -> None:
        self.addresses = {name: f"10.77.{number}.2" for number, name in enumerate(servers, start=1)}
        self.stopped = 0
        self._hosts, self._resolv_conf = folder / "hosts", folder / "resolv.conf"
        run("ip", "link", "set", "lo", "up")
        run("ip", "netns", "add", "router")
        self._in("router", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self._wire("client", None, CLIENT, ROUTER_TO_CLIENT)
        for name, address in self.addresses.items():
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            self._wire(name, name, address, self._router_to(name))
        self._in("router", "nft", "-f", "-", given=_TABLE)

    @staticmethod
    def within(server: str) -> list[str]:
        """Return what a command begins with that is to run at a server."""
        return ["ip", "netns", "exec", server]

    # Faults, each for as long as its block

    @contextlib.contextmanager
    def loss(self, percent: int) -> Iterator[None]:
        """Lose packets at random, in either direction of every link."""
        with self._rules(f"numgen random mod 100 < {percent} counter drop"):
            yield

    @contextlib.contextmanager
    def silence(self, server: str) -> Iterator[None]:
        """Pass nothing on, to or from a server; neither end is told."""
        with self._rules(f'oifname "{server}" counter drop', f'iifname "{server}" counter drop'):
            yield

    @contextlib.contextmanager
    def reset(self, server: str) -> Iterator[None]:
        """Answer whatever is sent to a server with a reset."""
        with self._rules(f'oifname "{server}" meta l4proto tcp counter reject with tcp reset'):
            yield

    @contextlib.contextmanager
    def unplugged(self, server: str) -> Iterator[None]:
        """Take the link of a server down; the router reports it unreachable after a while."""
        run("ip", "-n", server, "link", "set", "wire", "down")
        try:
            yield
        finally:
            run("ip", "-n", server, "link", "set", "wire", "up")
            run("ip", "-n", server, "route", "add", "default", "via", self._router_to(server))

    @contextlib.contextmanager
    def rate(self, mbit: int) -> Iterator[None]:
        """Let no link of a server carry more, in Mbit/s, in either direction; queue up to 0.4 s."""
        limit = f"tbf rate {mbit}mbit burst 16kb latency 400ms".split()
        for name in self.addresses:
            run("tc", "-n", "router", "qdisc", "add", "dev", name, "root", *limit)
            run("tc", "-n", name, "qdisc", "add", "dev", "wire", "root", *limit)
        try:
            yield
        finally:
            for name in self.addresses:
                run("tc", "-n", "router", "qdisc", "del", "dev", name, "root")
                run("tc", "-n", name, "qdisc", "del", "dev", "wire", "root")

    @contextlib.contextmanager
    def delay(self, delay_ms: float, jitter_ms: float) -> Iterator[DelayBridge]:
        """Lead the client's packets another way, on which each takes its own time."""
        with DelayBridge("air", "air-far", delay_ms, jitter_ms) as bridge:
            run("ip", "link", "set", "air", "up")
            run("ip", "link", "set", "air-far", "netns", "router")
            run("ip", "-n", "router", "link", "set", "air-far", "up")
            run("ip", "-n", "router", "route", "replace", f"{CLIENT}/32", "dev", "air-far")
            run("ip", "route", "replace", "default", "dev", "air", "src", CLIENT)
            try:
                yield bridge
            finally:
                run("ip", "route", "replace", "default", "via", ROUTER_TO_CLIENT)
                run("ip", "-n", "router", "route", "del", f"{CLIENT}/32", "dev", "air-far")

    @contextlib.contextmanager
    def names(self, **servers: str) -> Iterator[None]:
        """Give servers names, by a hosts file; a block within another one changes them.

        Args:
            **servers: The names, and which server each stands for.
        """
        before = self._hosts.read_text() if self._hosts.exists() else None
        lines = ["127.0.0.1 localhost"]
        lines += [f"{self.addresses[server]} {name}" for name, server in servers.items()]
        self._hosts.write_text("\n".join(lines) + "\n")
        with contextlib.ExitStack() as stack:
            if before is None:
                run("mount", "--bind", str(self._hosts), "/etc/hosts")
                stack.callback(self._hosts.unlink)
                stack.callback(run, "umount", "/etc/hosts")
                # gRPC also asks for IPv6 addresses, which the file does not have: a name server
                # that refuses at once, or each lookup would wait 13 s for an unreachable one.
                stack.enter_context(self.name_server())
            else:
                stack.callback(self._hosts.write_text, before)
            yield

    @contextlib.contextmanager
    def name_server(self) -> Iterator[None]:
        """Have the client's names looked up at port 53 of its own 127.0.0.1."""
        self._resolv_conf.write_text("nameserver 127.0.0.1\n")
        run("mount", "--bind", str(self._resolv_conf), "/etc/resolv.conf")
        try:
            yield
        finally:
            run("umount", "/etc/resolv.conf")

    # How it is done

    @staticmethod
    def _in(namespace: str, *command: str, given: str | None = None) -> str:
        return run("ip", "netns", "exec", namespace, *command, given=given)

    def _router_to(self, server: str) -> str:
        return f"{self.addresses[server].rpartition('.')[0]}.1"

    def _wire(self, far: str, namespace: str | None, address: str, router: str) -> None:
        """Join a namespace to the router; its end is called "wire", the router's as it itself."""
        at = ["-n", namespace] if namespace is not None else []
        run(
            "ip", *at, "link", "add", "wire", "type", "veth", "peer", "name", far, "netns", "router"
        )
        # Packets of one segment, so that one in so many that is lost is one on a real link.
        run("ip", *at, "link", "set", "wire", "gso_max_segs", "1")
        run("ip", "-n", "router", "link", "set", far, "gso_max_segs", "1")
        run("ip", *at, "address", "add", f"{address}/24", "dev", "wire")
        run("ip", *at, "link", "set", "wire", "up")
        run("ip", "-n", "router", "address", "add", f"{router}/24", "dev", far)
        run("ip", "-n", "router", "link", "set", far, "up")
        run("ip", *at, "route", "add", "default", "via", router)

    @contextlib.contextmanager
    def _rules(self, *rules: str) -> Iterator[None]:
        """Have rules on the router; one block of them at a time."""
        added = "\n".join(f"add rule inet faults forward {rule}" for rule in rules)
        self._in("router", "nft", "-f", "-", given=added)
        try:
            yield
        finally:
            listed = self._in("router", "nft", "list", "chain", "inet", "faults", "forward")
            self.stopped += sum(map(int, re.findall(r"packets (\d+)", listed)))
            self._in("router", "nft", "flush", "chain", "inet", "faults", "forward")
