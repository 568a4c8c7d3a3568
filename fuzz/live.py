"""Mutated images and messages through a live server: fuzz/live.py [--images N] [--messages N].

The server is a process that computes in PyTorch; the network is small and answers every image
differently. Images are sent as requests, uploads and frames; messages are mutated calls of every
RPC. Each is made of the seed and its number alone. What must hold: every call is answered, bad
input with a code of the contract, never with INTERNAL or UNKNOWN, good images in between rightly;
in the end nothing is left inside, memory is where it was, and the log has no error.

What breaks a promise is written into `.cache/fuzz/live`, and how to repeat it is printed. With
--write, the figures go into docs/reliability.md; `make fuzz-live` does that.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import seeds
import torch
from calls import ALLOWED, NOT_YET, SECRET, SMALL, write_folders
from mutations import mutated, mutated_messages
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save_file
from torchvision.models import resnet50

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_client.cli.bench.machine import machine, versions

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: make fuzz-live -->", "<!-- end: make fuzz-live -->"
FOUND = ROOT / ".cache" / "fuzz" / "live"

INFERENCE = seeds.INFERENCE
SENDERS = 8
# Whoever is not answered by then finds a hang.
ANSWER_S = 60.0
# A good image is sent after so many others of a sender.
GOOD_EVERY = 50
CLOSE = 1e-3
SAMPLE_EVERY_S = 0.05
MAX_DRIFT = 0.05
EMPTY_S = 10.0
METADATA = (("authorization", f"Bearer {SECRET}"),)
# Of the metrics, those that count what is inside the server.
INSIDE = (
    *("resnet50_inside_requests", "resnet50_inside_bytes", "resnet50_open_streams"),
    *("resnet50_decode_queue_calls", "resnet50_decode_threads_busy", "resnet50_queue_images"),
    "resnet50_decode_threads_stuck",
)
CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Sent:
    """A call.

    Attributes:
        name: Its kind and number.
        path: Of the RPC.
        messages: Serialized.
    """

    name: str
    path: str
    messages: list[bytes]


@dataclass(frozen=True)
class Plan:
    """What is sent.

    Attributes:
        seed: Of all mutations.
        images: How many images.
        messages: How many mutated calls.
        warm_up: How many of both come before, for the server to take the memory that it needs.
        photos: Files that are mutated beside those that are made.
        flat: Whether memory is looked at: it needs some thousand calls to say anything.
    """

    seed: int = 1
    images: int = 20_000
    messages: int = 20_000
    warm_up: int = 4_000
    photos: tuple[bytes, ...] = ()
    flat: bool = True


@dataclass
class Report:
    """What came of it.

    Attributes:
        codes: Of the answers, for "image" and "message".
        good: Good images that were answered rightly meanwhile.
        findings: Promises that were broken.
        took_s: In seconds.
        memory_kib: Of the server: how many calls had been made, and what it held.
    """

    codes: dict[str, Counter[str]] = field(
        default_factory=lambda: {"image": Counter(), "message": Counter()}
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


class Source:
    """Makes calls of numbers.

    Args:
        plan: What is sent.
    """

    def __init__(self, plan: Plan) -> None:
        self.seed = plan.seed
        self._files = [*seeds.images(24).values(), *seeds.images(200).values(), *plan.photos]
        self._raw = list(seeds.raw_images().values())
        self._calls = [
            call
            for name, calls in seeds.calls().items()
            for call in calls
            if not name.endswith(NOT_YET)
        ]
        self._messages = [message for _, messages in self._calls for message in messages]

    def make(self, name: str) -> Sent:
        """Make a call.

        Args:
            name: "image:5" or "message:5".
        """
        draw = Random(f"{self.seed}:{name}")
        if name.startswith("message"):
            path, messages = draw.choice(self._calls)
            return Sent(name, path, mutated_messages(draw, messages, self._messages))
        if draw.random() < 0.15:
            return Sent(name, *_single(draw, image_pb2.Image(raw=self._lying(draw))))
        content = mutated(draw, draw.choice(self._files), self._files)
        way = draw.choice(("Classify", "Embed", "Upload", "Upload", "Stream", "Stream"))
        if way == "Upload":
            return Sent(name, *_upload(draw, content))
        image = image_pb2.Image(encoded=content)
        if way == "Stream":
            return Sent(name, *_frames(draw, image))
        return Sent(name, *_single(draw, image))

    def _lying(self, draw: Random) -> image_pb2.RawImage:
        """Return a raw image whose numbers are not those of its pixels."""
        raw = image_pb2.RawImage()
        raw.CopyFrom(draw.choice(self._raw))
        numbers = (0, 1, 2, 7, 8, 16, 255, 1000, 4096, 65535, 65536, 2**31, 2**32 - 1)
        for _ in range(draw.choice((1, 1, 2, 3))):
            match draw.randrange(5):
                case 0:
                    raw.width = draw.choice((*numbers, raw.width + 1))
                case 1:
                    raw.height = draw.choice((*numbers, raw.height + 1))
                case 2:
                    raw.row_stride_bytes = draw.choice((*numbers, raw.row_stride_bytes + 1))
                case 3:
                    raw.pixel_format = draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 99))  # type: ignore[assignment]
                case _:
                    length = len(raw.pixels) + draw.choice((-100, -1, 1, 100))
                    raw.pixels = (raw.pixels + bytes(100))[: max(0, length)]
        return raw


def _single(draw: Random, image: image_pb2.Image) -> tuple[str, list[bytes]]:
    kind = draw.choice(("Classify", "Embed"))
    request = getattr(inference_pb2, kind + "Request")(image=image)
    return INFERENCE + kind, [request.SerializeToString()]


def _upload(draw: Random, content: bytes) -> tuple[str, list[bytes]]:
    kind = draw.choice(("Classify", "Embed"))
    part = getattr(inference_pb2, kind + "UploadRequest")
    options = getattr(inference_pb2, kind + "UploadOptions")()
    length = draw.choice((100, 1000, 65536))
    chunks = [content[at : at + length] for at in range(0, len(content), length)]
    parts = [part(options=options), *(part(chunk=chunk) for chunk in chunks)]
    return INFERENCE + kind + "Upload", [one.SerializeToString() for one in parts]


def _frames(draw: Random, image: image_pb2.Image) -> tuple[str, list[bytes]]:
    kind = draw.choice(("Classify", "Embed"))
    part = getattr(inference_pb2, kind + "StreamRequest")
    config = getattr(inference_pb2, kind + "StreamConfig")()
    good = seeds.raw_images()["PIXEL_FORMAT_RGB padded by 0"]
    frames = [image, image_pb2.Image(raw=good), image]
    parts = [part(config=config)]
    parts += [
        part(frame=inference_pb2.Frame(frame_id=number, image=one))
        for number, one in enumerate(frames)
    ]
    return INFERENCE + kind + "Stream", [one.SerializeToString() for one in parts]


class Server:
    """A server process, and what it says of itself.

    Args:
        folder: For its files.
    """

    def __init__(self, folder: Path) -> None:
        write_folders(folder)
        torch.manual_seed(0)
        network = resnet50(weights=None, num_classes=len(SMALL["categories"]))
        save_file(network.state_dict(), folder / "tiny" / "weights.safetensors")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            metrics = f"127.0.0.1:{free.getsockname()[1]}"
        self._metrics = f"http://{metrics}/metrics"
        self._log = folder / "log"
        command = [
            *(sys.executable, "-m", "resnet50_server", "serve", "--listen", "127.0.0.1:0"),
            *("--variants", f"tiny={folder / 'tiny'}", "--variants-dir", str(folder / "variants")),
            *("--weights-dir", str(folder), "--no-download", "--metrics-listen", metrics),
            *("--tokens-file", str(folder / "tokens.toml"), "--log-level", "warning"),
            *("--engine", "torch", "--device", "cpu", "--engine-threads", "1"),
            *("--decode-threads", "2", "--max-image-pixels", "4000000"),
        ]
        # One heap: else each of gRPC's threads has one, and what those keep free differs.
        environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self.process.stdout is not None  # a pipe, as asked for
        said = self.process.stdout.readline()
        if not said.startswith("listening on "):
            raise SystemExit(f"the server did not start: {self._log.read_text()}")
        self.address = said.split()[-1]

    def memory_kib(self) -> int:
        """Return what the process holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 1024

    def inside(self) -> dict[str, float]:
        """Return what is inside the server, without what is 0."""
        with urllib.request.urlopen(self._metrics, timeout=ANSWER_S) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        samples = [sample for family in families for sample in family.samples]
        return {one.name: one.value for one in samples if one.name in INSIDE and one.value}

    def stop(self) -> Iterator[str]:
        """Stop it; give what is wrong with that, or with what it has logged."""
        self.process.terminate()
        try:
            status = self.process.wait(ANSWER_S)
            if status != 0:
                yield f"the server ended with status {status}"
        except subprocess.TimeoutExpired:
            self.process.kill()
            yield "the server did not end when it was told to"
        bad = [
            line
            for line in self._log.read_text().splitlines()
            if " ERROR " in line or " CRITICAL " in line or line.startswith("Traceback")
        ]
        if bad:
            yield f"the server has logged {len(bad)} errors, the first: {bad[0]}"


class Senders:
    """Threads that send what is made of numbers.

    Args:
        plan: What.
        server: Where to.
        report: Takes what comes of it.
    """

    def __init__(self, plan: Plan, server: Server, report: Report) -> None:
        self._source = Source(plan)
        self._server = server
        self._report = report
        self._lock = threading.Lock()
        self._good = [
            image_pb2.Image(encoded=content)
            for name, content in seeds.images(64).items()
            if name in ("jpeg", "png", "webp", "gif", "bmp", "tiff")
        ]
        self._answers: list[Any] = []
        with self._channel() as channel:
            self._answers = [self._embedding(channel, image) for image in self._good]
        distances = [np.abs(self._answers[0] - other).max() for other in self._answers[1:]]
        assert max(distances) > 10 * CLOSE * np.abs(self._answers[0]).max()

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
        if code not in ALLOWED:
            FOUND.mkdir(parents=True, exist_ok=True)
            path = FOUND / f"{self._source.seed}-{sent.name.replace(':', '-')}.json"
            packed = [base64.b64encode(message).decode() for message in sent.messages]
            path.write_text(json.dumps({"path": sent.path, "messages": packed}))
            self._find(
                f"{sent.name}: {sent.path}: {code.name}: {text}\n"
                f"    python fuzz/live.py --repeat {path.relative_to(ROOT)}"
            )

    def _check_good(self, channel: grpc.Channel, number: int) -> None:
        """Require that a good image is answered as at the beginning."""
        which = number % len(self._good)
        answer, expected = self._embedding(channel, self._good[which]), self._answers[which]
        if np.abs(answer - expected).max() > CLOSE * np.abs(expected).max():
            self._find(f"a good image (number {which}) has got another answer than before")
        with self._lock:
            self._report.good += 1

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
    kind = inference_pb2.EmbedStreamResponse
    if "Classify" in sent.path:
        kind = inference_pb2.ClassifyStreamResponse
    try:
        if not sent.path.endswith("Stream"):
            # As many messages as there are, though one is what most methods take.
            channel.stream_unary(sent.path)(iter(sent.messages), **wait)
            return grpc.StatusCode.OK, ""
        replies = [
            kind.FromString(reply)
            for reply in channel.stream_stream(sent.path)(iter(sent.messages), **wait)
        ]
    except grpc.RpcError as error:
        return error.code(), error.details()
    errors = [(CODES[reply.error.code], reply.error.message) for reply in replies]
    if sent.name.startswith("image") and len(errors) != len(sent.messages) - 1:
        return grpc.StatusCode.UNKNOWN, f"{len(errors)} of {len(sent.messages) - 1} frames answered"
    # What is not allowed goes first, then what is refused, so that it is counted.
    errors.sort(key=lambda told: (told[0] not in ALLOWED, told[0] is not grpc.StatusCode.OK))
    return errors[-1] if errors else (grpc.StatusCode.OK, "")


def run(plan: Plan) -> Report:
    """Start a server, send everything, look at what is left, stop it."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="resnet50-fuzz-") as folder:
        server = Server(Path(folder))
        try:
            senders = Senders(plan, server, report)
            senders.send(_names(-plan.warm_up // 2, 0, -plan.warm_up // 2, 0))
            for codes in report.codes.values():
                codes.clear()
            started = time.monotonic()
            with _sampled(server, report):
                senders.send(_names(0, plan.images, 0, plan.messages))
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


def _names(first_image: int, images: int, first_message: int, messages: int) -> list[str]:
    """Return the names of calls, images and messages by turns."""
    names = [(number / max(images, 1), f"image:{number}") for number in range(first_image, images)]
    names += [
        (number / max(messages, 1), f"message:{number}")
        for number in range(first_message, messages)
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
    """Say what came of it."""
    for kind, codes in report.codes.items():
        named = ", ".join(f"{code} {count}" for code, count in codes.most_common())
        yield f"{codes.total()} mutated {kind}s: {named}"
    total = sum(codes.total() for codes in report.codes.values())
    yield (
        f"in {report.took_s:.0f} s ({total / report.took_s:.0f}/s), seed {plan.seed}; no other"
        f" code, no call without an answer, no error in the log; {report.good} good images between"
        " them were answered as before; in the end nothing was inside"
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
    """Write the figures into docs/reliability.md."""
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
    found = json.loads(path.read_text())
    messages = [base64.b64decode(message) for message in found["messages"]]
    with tempfile.TemporaryDirectory(prefix="resnet50-fuzz-") as folder:
        server = Server(Path(folder))
        try:
            with grpc.insecure_channel(server.address) as channel:
                code, text = _call(channel, Sent(path.stem, found["path"], messages))
            print(f"{found['path']}: {code.name} {text}")
        finally:
            for problem in server.stop():
                print(problem)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--images", type=int, default=Plan.images)
    parser.add_argument("--messages", type=int, default=Plan.messages)
    parser.add_argument("--photos", type=Path, help="a folder of files that are mutated as well")
    parser.add_argument("--write", action="store_true", help="into docs/reliability.md")
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
