"""The HTTP gateway as a child process: started, restarted when it ends, stopped with the server.

This process binds the address and keeps it, so that connections wait while a gateway starts again.
The gateway reaches the server by a Unix socket in a private directory, and ends when its standard
input closes, that is, with this process.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from resnet50_server.api.listen import is_local
from resnet50_server.errors import UnusableSetting
from resnet50_server.runtime.streams import announce
from resnet50_server.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 1024
# Pause before a gateway is started again; doubled while it keeps ending early.
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 10.0
# A gateway that ran for this long has started well.
HEALTHY_S = 10.0
# After SIGTERM and its drain.
KILL_GRACE_S = 5.0


class GatewayProcess:
    """A gateway and the process that runs it.

    Args:
        settings: With `http_listen`.
        listener: Listens there.
        directory: Private; its own.

    Attributes:
        settings: Those for the server, which has to listen on the gateway's socket as well.
        private_address: The server's address for the gateway.
        url: The gateway's, for clients.
    """

    def __init__(self, settings: Settings, listener: socket.socket, directory: Path) -> None:
        self._listener = listener
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._running: asyncio.Task[None] | None = None
        self.private_address = f"unix:{directory / 'server.sock'}"
        self.settings = settings.model_copy(
            update={
                "listen": [*settings.listen, self.private_address],
                "metrics_listen": settings.metrics_listen or "127.0.0.1:0",
            }
        )
        host, port = listener.getsockname()[:2]
        scheme = "http" if settings.tls_cert is None else "https"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    @classmethod
    async def open(cls, settings: Settings) -> GatewayProcess:
        """Bind the address; `start` starts the gateway.

        Raises:
            UnusableSetting: The address cannot be bound, or would be plaintext to other machines.
        """
        address = settings.http_listen
        assert address is not None
        plaintext = settings.tls_cert is None and not settings.allow_plaintext
        if plaintext and not await is_local(address):
            raise UnusableSetting(
                "http_listen",
                f"{address} is reachable from other machines and would be plaintext; set tls_cert"
                " and tls_key, or allow_plaintext if anyone on the network path may read and"
                " change the traffic",
            )
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
        except OSError as error:
            raise UnusableSetting(
                "http_listen",
                f"cannot listen on {address}: {error.strerror or error}; stop the process that"
                " listens there, or set another address",
            ) from error
        return cls(settings, listener, Path(tempfile.mkdtemp(prefix="resnet50-gateway-")))

    def start(self, metrics_url: Callable[[], str | None]) -> None:
        """Start the gateway; restart it whenever it ends.

        Args:
            metrics_url: Returns the URL of the server's metrics.
        """
        self._running = asyncio.create_task(self._run(metrics_url), name="HTTP gateway")

    async def stop(self) -> None:
        """End the gateway, which completes its requests; close the address."""
        self._listener.close()
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self.settings.drain_timeout_s + KILL_GRACE_S)
            except asyncio.TimeoutError:
                log.warning("the HTTP gateway did not end in time; it is killed")
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _run(self, metrics_url: Callable[[], str | None]) -> None:
        backoff_s = MIN_BACKOFF_S
        announced = False
        while True:
            started = time.monotonic()
            try:
                self._process = process = await self._spawn(metrics_url())
            except OSError as error:  # the system's limit of processes, files or memory
                ended = f"cannot be started ({error.strerror or error})"
            else:
                assert process.stdout is not None
                if await process.stdout.readline() and not announced:
                    announce(f"http on {self.url}")
                    announced = True
                ended = f"ended with exit code {await process.wait()}"
            lived_s = time.monotonic() - started
            backoff_s = MIN_BACKOFF_S if lived_s > HEALTHY_S else backoff_s
            log.error("the HTTP gateway %s; it is started again in %g s", ended, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _spawn(self, metrics_url: str | None) -> asyncio.subprocess.Process:
        settings, file = self.settings, self._listener.fileno()
        command = [
            *(sys.executable, "-m", "resnet50_gateway"),
            *("--listen", f"fd:{file}"),
            *("--server", self.private_address),
            *("--max-message-bytes", str(settings.max_message_bytes)),
            *("--max-images", str(settings.max_images_per_call)),
            *("--drain-timeout-s", str(settings.drain_timeout_s)),
            *("--log-level", settings.log_level),
        ]
        for name in ("tls_cert", "tls_key", "tls_client_ca"):
            if (path := getattr(settings, name)) is not None:
                command += [f"--{name.replace('_', '-')}", str(path)]
        if metrics_url is not None:
            command += ["--metrics", metrics_url]
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(file,),
            # SIGINT of a terminal is for this process, which ends the gateway.
            start_new_session=True,
        )
