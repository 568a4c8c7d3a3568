"""Mutated images and messages through a live server: python -m fuzz.live [--images N] [...].

The server is a process that computes in PyTorch; the network is small and answers every image
differently. Images are sent as requests, uploads and frames; messages are mutated calls of every
RPC. Each is made of the seed and its number alone. Required: every call is answered, bad
input with a code of the contract and never with INTERNAL or UNKNOWN, good images in between
rightly; in the end nothing is left inside, memory is where it was, and the log has no error.

An input that breaks a promise is written into `.cache/fuzz/live`; the command to repeat it is
printed. With --write, the figures go into docs/benchmarks/reliability.md; `make fuzz-live` does
that.
"""

from __future__ import annotations

import argparse
import os
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fuzz import seed_images
from fuzz.calls import ALLOWED, SECRET
from fuzz.live_calls import Sent, Source
from fuzz.live_server import ANSWER_S, Server
from fuzz.seeds import INFERENCE
from resnet50.v1 import image_pb2, inference_pb2
from resnet50_bench.environment import machine, versions

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "reliability.md"
BEGIN, END = "<!-- begin: make fuzz-live -->", "<!-- end: make fuzz-live -->"
FOUND = ROOT / ".cache" / "fuzz" / "live"

SENDERS = 8
# A good image is sent after so many others of a sender.
GOOD_EVERY = 50
CLOSE = 1e-3
SAMPLE_EVERY_S = 0.05
MAX_DRIFT = 0.05
EMPTY_S = 10.0
METADATA = (("authorization", f"Bearer {SECRET}"),)
CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Plan:
    """Plan of the requests to send.

    Attributes:
        seed: Of all mutations.
        images: How many images.
        messages: How many mutated calls.
        oip: How many mutated calls of the Open Inference Protocol.
        warm_up: How many of both come before, for the server to take the memory that it needs.
        photos: Files that are mutated beside those that are made.
        flat: Whether memory is looked at: it needs some thousand calls to say anything.
    """

    seed: int = 1
    images: int = 20_000
    messages: int = 20_000
    oip: int = 10_000
    warm_up: int = 4_000
    photos: tuple[bytes, ...] = ()
    flat: bool = True


@dataclass
class Report:
    """Outcome of the requests.

    Attributes:
        codes: Of the answers, for "image", "message" and "oip".
        good: Good images that were answered rightly meanwhile.
        findings: Promises that were broken.
        took_s: In seconds.
        memory_kib: Of the server: how many calls had been made, and what it held.
    """

    codes: dict[str, Counter[str]] = field(
        default_factory=lambda: {"image": Counter(), "message": Counter(), "oip": Counter()}
    )
    good: int = 0
    findings: list[str] = field(default_factory=list)
    took_s: float = 0.0
    memory_kib: list[tuple[int, int]] = field(default_factory=list)

    def tenths_mib(self) -> tuple[float, float]:
        """Return the median memory during the first and the last tenth of the calls, in MiB."""
        last = self.memory_kib[-1][0]
        first_tenth = [kib for done, kib in self.memory_kib if done <= last * 0.1]
        last_tenth = [kib for done, kib in self.memory_kib if done >= last * 0.9]
        return statistics.median(first_tenth) / 1024, statistics.median(last_tenth) / 1024


class Senders:
    """Threads that send what is made of numbers.

    Args:
        plan: What.
        server: Where to.
        report: Receives the outcome.

    Attributes:
        answers: To the good images, at the beginning.
    """

    def __init__(self, plan: Plan, server: Server, report: Report) -> None:
        self._source = Source(plan.seed, plan.photos)
        self._server = server
        self._report = report
        self._lock = threading.Lock()
        self._good = [
            image_pb2.Image(encoded=content)
            for name, content in seed_images.images(64).items()
            if name in ("jpeg", "png", "webp", "gif", "bmp", "tiff")
        ]
        self.answers: list[Any] = []
        with self._channel() as channel:
            self.answers = [self._embedding(channel, image) for image in self._good]
        distances = [np.abs(self.answers[0] - other).max() for other in self.answers[1:]]
        assert max(distances) > 10 * CLOSE * np.abs(self.answers[0]).max()

    def send(self, names: list[str]) -> None:
        """Send calls; return when all have been answered."""
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in names:
            waiting.put(name)
        threads = [
            threading.Thread(target=self._work, args=(waiting,), name=f"sender {number}")
            for number in range(SENDERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, waiting: queue.SimpleQueue[str]) -> None:
        with self._channel() as channel:
            for turn in range(sys.maxsize):
                try:
                    name = waiting.get_nowait()
                except queue.Empty:
                    break
                try:
                    self.judge(channel, self._source.make(name))
                    if turn % GOOD_EVERY == 0:
                        self._check_good(channel, turn // GOOD_EVERY)
                except Exception as error:  # else a sender would be missing without a word
                    self._find(f"{name}: {error!r}")
            for number in range(len(self._good)):
                self._check_good(channel, number)

    def judge(self, channel: grpc.Channel, sent: Sent) -> None:
        """Send one call and judge the answer."""
        kind = sent.name.partition(":")[0]
        code, text = _call(channel, sent)
        with self._lock:
            self._report.codes.setdefault(kind, Counter())[code.name] += 1
        # The mutated `timeout` of a call of the Open Inference Protocol may be too short, which the
        # server's error says; a call that was not answered ends with gRPC's own words.
        too_short = (
            kind == "oip"
            and code is grpc.StatusCode.DEADLINE_EXCEEDED
            and "Deadline Exceeded" not in text
        )
        if code not in ALLOWED and not too_short:
            path = FOUND / f"{self._source.seed}-{sent.name.replace(':', '-')}.json"
            sent.write(path)
            self._find(
                f"{sent.name}: {sent.path}: {code.name}: {text}\n"
                f"    python -m fuzz.live --repeat {os.path.relpath(path, ROOT)}"
            )

    def _check_good(self, channel: grpc.Channel, number: int) -> None:
        """Require that a good image is answered as at the beginning."""
        which = number % len(self._good)
        answer, expected = self._embedding(channel, self._good[which]), self.expected(which)
        if np.abs(answer - expected).max() > CLOSE * np.abs(expected).max():
            self._find(f"a good image (number {which}) has got another answer than before")
        with self._lock:
            self._report.good += 1

    def expected(self, which: int) -> Any:
        """Return what a good image has to be answered."""
        return self.answers[which]

    def _embedding(self, channel: grpc.Channel, image: image_pb2.Image) -> Any:
        call = channel.unary_unary(
            INFERENCE + "Embed",
            request_serializer=inference_pb2.EmbedRequest.SerializeToString,
            response_deserializer=inference_pb2.EmbedResponse.FromString,
        )
        request = inference_pb2.EmbedRequest(image=image)
        reply = call(request, timeout=ANSWER_S, metadata=METADATA)
        return np.frombuffer(reply.embedding.values, dtype="<f4")

    def _find(self, what: str) -> None:
        with self._lock:
            self._report.findings.append(what)
            print(f"FOUND {what}", file=sys.stderr, flush=True)

    @contextmanager
    def _channel(self) -> Iterator[grpc.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        with grpc.insecure_channel(self._server.address, options=options) as channel:
            yield channel


def _call(channel: grpc.Channel, sent: Sent) -> tuple[grpc.StatusCode, str]:
    """Make a call; return the worst of what it, or one of its frames, is told."""
    wait: dict[str, Any] = {"timeout": ANSWER_S, "metadata": METADATA}
    kind: Any = inference_pb2.EmbedStreamResponse
    if "Classify" in sent.path:
        kind = inference_pb2.ClassifyStreamResponse
    try:
        if sent.path.endswith("ModelStreamInfer"):
            answers: Any = channel.stream_stream(sent.path)
            for _ in answers(iter(sent.messages), **wait):
                pass  # an error in an answer has a text, and no code
            return grpc.StatusCode.OK, ""
        if not sent.path.endswith("Stream"):
            # As many messages as there are, though one is what most methods take.
            upload: Any = channel.stream_unary(sent.path)
            upload(iter(sent.messages), **wait)
            return grpc.StatusCode.OK, ""
        stream: Any = channel.stream_stream(sent.path)
        replies = [kind.FromString(reply) for reply in stream(iter(sent.messages), **wait)]
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    errors = [(CODES[reply.error.code], reply.error.message) for reply in replies]
    if sent.name.startswith("image") and len(errors) != len(sent.messages) - 1:
        return grpc.StatusCode.UNKNOWN, f"{len(errors)} of {len(sent.messages) - 1} frames answered"
    # Forbidden outcomes first, then refused ones, so that both are counted.
    errors.sort(key=lambda told: (told[0] not in ALLOWED, told[0] is not grpc.StatusCode.OK))
    return errors[-1] if errors else (grpc.StatusCode.OK, "")


def run(plan: Plan) -> Report:
    """Start a server, send everything, look at what is left, stop it."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="resnet50-fuzz-") as folder:
        server = Server(Path(folder))
        try:
            senders = Senders(plan, server, report)
            before = -plan.warm_up // 2
            senders.send(_names((before, 0), (before, 0), (before if plan.oip else 0, 0)))
            for codes in report.codes.values():
                codes.clear()
            started = time.monotonic()
            with _sampled(server, report):
                senders.send(_names((0, plan.images), (0, plan.messages), (0, plan.oip)))
            report.took_s = time.monotonic() - started
            if server.process.poll() is not None:
                report.findings.append(f"the server has died: {server.process.returncode}")
            else:
                report.findings += _left(server)
        finally:
            report.findings += server.stop()
    if plan.flat:
        first, last = report.tenths_mib()
        if abs(last / first - 1) > MAX_DRIFT:
            report.findings.append(f"memory went from {first:.0f} to {last:.0f} MiB")
    return report


def _names(*ranges: tuple[int, int]) -> list[str]:
    """Return the names of calls by turns.

    Args:
        *ranges: First number and end of the images, of the messages, and of the OIP's calls.
    """
    names = [
        (number / max(end, 1), f"{kind}:{number}")
        for kind, (first, end) in zip(("image", "message", "oip"), ranges, strict=True)
        for number in range(first, end)
    ]
    return [name for _, name in sorted(names)]


@contextmanager
def _sampled(server: Server, report: Report) -> Iterator[None]:
    """Note the server's memory meanwhile."""
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_EVERY_S) and server.process.poll() is None:
            done = sum(codes.total() for codes in report.codes.values())
            report.memory_kib.append((done, server.memory_kib()))

    sampling = threading.Thread(target=sample, name="sample memory")
    sampling.start()
    try:
        yield
    finally:
        ended.set()
        sampling.join()


def _left(server: Server) -> list[str]:
    """Wait until nothing is inside; return what is in the end."""
    ends = time.monotonic() + EMPTY_S
    while (inside := server.inside()) and time.monotonic() < ends:
        time.sleep(0.05)
    return [f"something is left inside the server: {inside}"] if inside else []


def lines_of(plan: Plan, report: Report) -> Iterator[str]:
    """Describe the outcome."""
    for kind, codes in report.codes.items():
        named = ", ".join(f"{code} {count}" for code, count in codes.most_common())
        if codes:
            what = "calls of the Open Inference Protocol" if kind == "oip" else f"{kind}s"
            yield f"{codes.total()} mutated {what}: {named}"
    total = sum(codes.total() for codes in report.codes.values())
    yield (
        f"in {report.took_s:.0f} s ({total / report.took_s:.0f}/s), seed {plan.seed}; no other"
        f" code, no call without an answer, no error in the log; {report.good} good images in"
        " between were answered as before; in the end nothing was inside"
        if not report.findings
        else f"{len(report.findings)} FINDINGS, the first: {report.findings[0]}"
    )
    first, last = report.tenths_mib()
    yield (
        f"memory: median of the first tenth {first:.0f} MiB, of the last {last:.0f} MiB"
        f" ({last / first - 1:+.1%}), at most {max(kib for _, kib in report.memory_kib) / 1024:.0f}"
        f" MiB; after a warm-up of {plan.warm_up} calls"
    )


def write(lines: list[str]) -> None:
    """Write the figures into docs/benchmarks/reliability.md."""
    where, used = machine(), versions()
    named = ", ".join(f"{name} {number}" for name, number in used.items())
    head = (
        f"{where['cpu']}, {where['cores']} cores; {named};"
        f" {datetime.now(timezone.utc).date().isoformat()}."
    )
    text = "\n".join([head, "", *(f"* {line}" for line in lines)])
    page = PAGE.read_text()
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def repeat(path: Path) -> None:
    """Send one call that was written down to a fresh server, and say what it answers."""
    sent = Sent.read(path)
    with tempfile.TemporaryDirectory(prefix="resnet50-fuzz-") as folder:
        server = Server(Path(folder))
        try:
            with grpc.insecure_channel(server.address) as channel:
                code, text = _call(channel, sent)
            print(f"{sent.path}: {code.name} {text}")
        finally:
            for problem in server.stop():
                print(problem)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--images", type=int, default=Plan.images)
    parser.add_argument("--messages", type=int, default=Plan.messages)
    parser.add_argument("--oip", type=int, default=Plan.oip)
    parser.add_argument("--photos", type=Path, help="a folder of files that are mutated as well")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="a call that was found")
    arguments = parser.parse_args()
    if arguments.repeat:
        repeat(arguments.repeat)
        return
    photos = sorted(arguments.photos.iterdir()) if arguments.photos else []
    plan = Plan(
        seed=arguments.seed,
        images=arguments.images,
        messages=arguments.messages,
        oip=arguments.oip,
        photos=tuple(path.read_bytes() for path in photos if path.is_file()),
    )
    report = run(plan)
    lines = list(lines_of(plan, report))
    print("\n".join(lines))
    for finding in report.findings:
        print(f"FOUND {finding}", file=sys.stderr)
    if report.findings:
        sys.exit(1)
    if arguments.write:
        write(lines)


if __name__ == "__main__":
    main()
