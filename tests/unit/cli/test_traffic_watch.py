"""`resnet50 variants splits --watch` and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal

from typer.testing import CliRunner

from resnet50_cli.app import app
from resnet50_cli.variants import traffic


def test_ctrl_c_that_python_ignores_ends_the_watch(monkeypatch):
    polls = []

    def poll(*_):
        polls.append(None)
        assert len(polls) < 10
        # As if it came while an object is finalised.
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(traffic, "query_each", poll)
    done = CliRunner().invoke(app, ["variants", "splits", "--watch", "--interval-s", "0.1"])
    assert (done.exit_code, len(polls)) == (0, 1)
