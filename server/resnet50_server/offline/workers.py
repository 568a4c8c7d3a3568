"""Workers of a Ray cluster: how many, where, and with which processors."""

from __future__ import annotations

from dataclasses import dataclass

# Address of a cluster that is started on this machine, and stopped at the end of the run.
LOCAL = "local"


@dataclass(frozen=True)
class RayWorkers:
    """Workers of a Ray cluster, each with an engine of its own.

    Attributes:
        address: Address of the cluster, e.g. "10.0.0.1:6379"; "auto" for the one of this machine;
            "local" for one that is started here for the run.
        count: Number of workers.
        num_cpus: CPUs of each, which bound its threads as well.
        num_gpus: GPUs of each.

    Raises:
        ValueError: A number is too small.
    """

    address: str = LOCAL
    count: int = 1
    num_cpus: int = 1
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("count", self.count, 1),
            ("num_cpus", self.num_cpus, 1),
            ("num_gpus", self.num_gpus, 0),
        ):
            if value < least:
                raise ValueError(f"workers.{name}: is {value}, must be at least {least}")
