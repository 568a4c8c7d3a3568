"""Random numbers of the SDK: IDs of calls, and the jitter of pauses.

Not Python's own generator: an application that seeds it alike in each process would get equal IDs
and pauses in all of them, and its own numbers would depend on the number of calls.
"""

from __future__ import annotations

import random

from ._forks import tell_after_fork


class _Generator(random.Random):
    def after_fork(self) -> None:
        """Take another seed of the system than the parent process."""
        self.seed()


_generator = _Generator()
tell_after_fork(_generator)


def random_id() -> str:
    """Return 32 random hex digits."""
    # Not uuid4: it makes a system call, and releases the GIL for that.
    return f"{_generator.getrandbits(128):032x}"


def with_jitter(pause_s: float) -> float:
    """Return a pause that is up to 20% shorter or longer, in seconds."""
    return pause_s * _generator.uniform(0.8, 1.2)
