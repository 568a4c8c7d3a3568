"""Exit codes of `resnet50-server serve`, as docs/reference/exit-codes.md lists them."""

from __future__ import annotations

from typing import NamedTuple

from resnet50_server.runtime.fatal import DecodingHung, EngineHung, FatalError


class ExitCode(NamedTuple):
    """An exit code.

    Attributes:
        code: The number, or several.
        meaning: Why the process has ended.
        restart: Whether a restart helps.
    """

    code: str
    meaning: str
    restart: str


SERVE = (
    ExitCode("0", "SIGTERM or SIGINT; requests in flight were completed.", ""),
    ExitCode(
        "1",
        "The server could not start: weights are missing, the address is in use, memory is too"
        " small, torch and torchvision do not match. The last line of the log names the reason and"
        " a remedy.",
        "Helps once the reason is gone.",
    ),
    ExitCode(
        "1, while serving",
        "The event loop was blocked for 60 s. The last lines of stderr begin with `Timeout"
        " (0:01:00)!` and have the stacks of all threads. A process that was stopped for longer"
        " (SIGSTOP, `docker pause`, a debugger) also ends like this once it continues. Not on"
        " Python 3.10, where only a liveness probe detects a blocked event loop.",
        "Helps. Report the stacks.",
    ),
    ExitCode(
        "2",
        "The configuration is invalid: a flag, an environment variable, a key of the file, a"
        " certificate, the tokens file or the variants file. One line for each problem.",
        "Does not help.",
    ),
    ExitCode(
        str(FatalError.status),
        "The device or the batch scheduler is lost. The log has the reason.",
        "Helps, unless the device is broken.",
    ),
    ExitCode(
        str(EngineHung.status),
        "The engine hangs: a batch exceeded `engine_timeout_s`. The stacks of all threads are on"
        " stderr.",
        "Helps. Report the stacks.",
    ),
    ExitCode(
        str(DecodingHung.status),
        "Decoding hangs in all threads. The log has the request IDs of the images.",
        "Helps.",
    ),
    ExitCode(
        "130, 143",
        "A second SIGINT or SIGTERM during the drain: requests in flight were aborted.",
        "",
    ),
    ExitCode(
        "137",
        "SIGKILL, often by the system because memory ran out (`dmesg`).",
        "See [memory limits](limits.md#memory).",
    ),
)
