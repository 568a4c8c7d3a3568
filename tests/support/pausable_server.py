"""A fake server that can be paused at a given image."""

from __future__ import annotations

import sys
import threading
from typing import Any

from resnet50_client.testing import FakeServer


class PausableServer(FakeServer):
    """Answers images until it is paused; then calls in flight wait until it is resumed.

    Args:
        **options: Of `FakeServer`.
    """

    def __init__(self, **options: Any) -> None:
        self._pause_at = sys.maxsize
        self._go = threading.Event()
        super().__init__(**options)

    def pause_after(self, count: int) -> int:
        """Answer so many further images, then pause.

        Returns:
            Length of `received` by then, up to a few calls that arrived together.
        """
        self._go.clear()
        self._pause_at = len(self.received) + count
        return self._pause_at

    def resume(self) -> None:
        """Answer all images."""
        self._pause_at = sys.maxsize
        self._go.set()

    def __enter__(self) -> PausableServer:
        return self

    def stop(self) -> None:
        self.resume()
        super().stop()

    def answer(self, method: str, options: Any, image: Any, context: Any) -> Any:
        if len(self.received) >= self._pause_at:
            self._go.wait(60)
        return super().answer(method, options, image, context)
