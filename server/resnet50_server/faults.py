"""What ends a server: it says so to everybody, and its process exits for a supervisor."""

from __future__ import annotations


class Fault(Exception):
    """The server is lost. The message is for the log and `/livez`, not for callers.

    Attributes:
        status: The exit status of the process.
    """

    status = 70


class DeviceLost(Fault):
    """Batch after batch has failed, also one that the device has computed before."""


class EngineHung(Fault):
    """A batch has not come back from the engine."""

    status = 71


class DecodingHung(Fault):
    """All decode threads, and those that took their places, are held by images."""

    status = 72


class LoopHung(Fault):
    """The event loop does not turn: nobody is answered, nor told anything."""

    status = 73
