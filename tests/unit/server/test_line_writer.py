"""Lines that a thread writes: in order, bounded, and never waited for."""

from __future__ import annotations

import io
import sys
import threading
import warnings

import pytest

from resnet50_server.runtime import streams
from resnet50_server.runtime.line_writer import MAX_LINE_CHARACTERS, LineStream, LineWriter


class Slow(io.StringIO):
    """Takes lines only once its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.blocked = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.blocked.set()
        self.gate.wait(60)
        return super().write(text)


def dropped(count: int) -> str:
    return f"{count} dropped"


def test_lines_of_each_thread_keep_their_order():
    stream = io.StringIO()
    writer = LineWriter(lambda: stream)

    def put(name: str) -> None:
        for number in range(200):
            writer.put(f"{name} {number}")

    threads = [threading.Thread(target=put, args=[name]) for name in "abc"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert writer.flush(30)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 600
    for name in "abc":
        of_one = [line for line in lines if line.startswith(name)]
        assert of_one == [f"{name} {number}" for number in range(200)]


def test_lines_are_written_once_a_thread_can_be_started(monkeypatch):
    stream = io.StringIO()
    writer = LineWriter(lambda: stream)

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            writer.put("first")
    writer.put("second")
    assert writer.flush(30)
    assert stream.getvalue() == "first\nsecond\n"


def test_unread_lines_are_dropped_counted_and_reported():
    stream = Slow()
    writer = LineWriter(lambda: stream, dropped, max_pending=100)
    for number in range(1000):
        writer.put(f"line {number:05}")  # 10 characters
    assert stream.blocked.wait(30)
    assert not writer.flush(0)
    assert writer.dropped == 990
    stream.gate.set()
    assert writer.flush(30)
    writer.put("later")
    assert writer.flush(30)
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if line.startswith("line")] == [
        f"line {number:05}" for number in range(10)
    ]
    assert [line for line in lines if "dropped" in line] == ["990 dropped"]
    assert lines[-1] == "later"


def test_unwritable_line_is_returned_and_the_next_tried():
    class Full(io.StringIO):
        failures = 1

        def write(self, text: str) -> int:
            if self.failures:
                self.failures -= 1
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream, failed = Full(), []
    writer = LineWriter(lambda: stream, on_error=lambda line, error: failed.append(line))
    writer.put("one")
    writer.put("two")
    assert writer.flush(30)
    assert (failed, stream.getvalue()) == (["one"], "two\n")


def test_flush_without_lines_returns_at_once():
    assert LineWriter(io.StringIO).flush(0)


def test_stream_passes_on_complete_lines_only():
    written = io.StringIO()
    writer = LineWriter(lambda: written)
    stream = LineStream(writer, written)
    print("one", "two", file=stream)
    stream.write("three\nfo")
    assert writer.flush(30)
    assert written.getvalue() == "one two\nthree\n"
    stream.write("ur\n")
    assert writer.flush(30)
    assert written.getvalue() == "one two\nthree\nfour\n"


def test_text_without_the_end_of_a_line_is_written_at_the_end(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with streams.unblocked_stderr():
        print("half a line", end="", file=sys.stderr)
    assert streams.flush(30)
    assert written.getvalue() == "half a line\n"


def test_progress_that_never_ends_its_line_is_not_kept():
    written = io.StringIO()
    writer = LineWriter(lambda: written)
    stream = LineStream(writer, written)
    for _ in range(2 * MAX_LINE_CHARACTERS // 8):
        stream.write("\r 50 %  ")
    assert writer.flush(30)
    assert len(written.getvalue()) > MAX_LINE_CHARACTERS


def test_writer_without_a_stream_drops_its_lines():
    writer = LineWriter(lambda: None)
    writer.put("one")
    assert writer.flush(30)


def test_warnings_and_uncaught_errors_never_block(monkeypatch):
    slow = Slow()
    monkeypatch.setattr(sys, "stderr", slow)
    with streams.unblocked_stderr(), warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show_warning)
        monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
        warnings.warn("of a library", stacklevel=1)
        failing = threading.Thread(target=lambda: 1 / 0, name="failing")
        failing.start()
        failing.join()
        assert slow.getvalue() == ""
        assert not streams.flush(0)
    assert sys.stderr is slow
    slow.gate.set()
    assert streams.flush(30)
    assert "of a library" in slow.getvalue()
    assert "ZeroDivisionError" in slow.getvalue()


def test_terminal_is_written_to_directly(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with streams.unblocked_stderr():
        assert sys.stderr is terminal


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Write a warning as Python does; pytest collects them instead."""
    print(warnings.formatwarning(str(message), category, filename, lineno), file=sys.stderr)
