"""Fuzz decoding and parsing, guided by coverage: python -m fuzz.run [TARGET ...] [--seconds N].

Each target (`targets.py`) has its share of the time, in a process of its own, and begins with the
inputs of `seeds.py` and `seed_images.py` and with the corpus of `fuzz/corpus`. Inputs that reach
new code are kept in `.cache/fuzz`, for the next run; `--keep` moves those that add coverage into
`fuzz/corpus`, where tests replay them. An input that breaks a promise ends its target's run; how to
repeat it is printed.

Our own modules, Pillow's and tomllib are instrumented. Code in C is not: libjpeg-turbo,
libtiff, libwebp, Pillow's decoders and protobuf's parser are reached by what the Python before them
lets through, and are watched for crashes, hangs and memory only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "fuzz" / "corpus"
WORK = ROOT / ".cache" / "fuzz"
NAMES = ("images", "raw", "calls", "replies", "files")
# Decoding images is where strangers reach furthest, and calls lead to everything else.
SHARES = {"images": 0.45, "raw": 0.1, "calls": 0.3, "replies": 0.075, "files": 0.075}
HANG_S = 30
MAX_MEMORY_MIB = 2048
# Of an input that is kept, in bytes.
MAX_KEPT = 4096
INSTRUMENTED = ["resnet50_server", "resnet50_client", "resnet50_cli", "PIL", "tomllib"]
# A line of libFuzzer: "#93 DONE cov: 1 ft: 2 corp: 3/4b lim: 5 exec/s: 6 rss: 7Mb".
_SAYS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")


def fuzz(name: str, arguments: list[str]) -> NoReturn:
    """Fuzz one target in this process, which ends with it.

    Args:
        name: The target's.
        arguments: Of libFuzzer.
    """
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz import targets
    from fuzz.message_mutations import mutated_messages
    from fuzz.mutations import mutated

    targets.forget_environment()
    target = targets.TARGETS[name]
    kept = [path.read_bytes() for path in sorted((WORK / "seeds" / name).iterdir())]

    def mutate(content: bytes, max_length: int, seed: int) -> bytes:
        """Break an input by what is known of its format, as often as without knowing anything."""
        draw = Random(seed)
        if draw.random() < 0.5:
            return bytes(atheris.Mutate(content, max_length))
        if name == "images":
            return mutated(draw, content, kept)[:max_length]
        from fuzz.calls import messages_of

        messages = messages_of(content)
        if not messages:
            return bytes(atheris.Mutate(content, max_length))
        others = messages_of(draw.choice(kept)) or messages
        changed = mutated_messages(draw, messages, others)
        sent = b"".join(min(len(one), 65535).to_bytes(2, "big") + one[:65535] for one in changed)
        return (content[:1] + sent)[:max_length]

    options = {"custom_mutator": mutate} if name in ("images", "calls") else {}
    # To merge, libFuzzer starts itself again by what it was called.
    itself = shlex.join([sys.executable, "-m", "fuzz.run", "--child", name])
    atheris.Setup([itself, *arguments], lambda content: targets.checked(target, content), **options)
    atheris.Fuzz()
    raise SystemExit


def inputs() -> dict[str, list[bytes]]:
    """Return what fuzzing begins with, by target: what is sound, and what has one thing wrong."""
    from fuzz import seed_images, seeds
    from fuzz.calls import call_bytes
    from fuzz.targets import raw_bytes

    calls = [call for sent in seeds.calls().values() for call in sent]
    raw = [*seed_images.raw_images().values(), *seed_images.wrong_raw_images()]
    return {
        "images": list(seed_images.images().values()),
        "raw": [raw_bytes(message) for message in raw],
        "calls": [call_bytes(*call) for call in (*calls, *seeds.wrong_calls())],
        "replies": seeds.replies(),
        "files": seeds.files(),
    }


def write_seeds() -> None:
    """Write them, for libFuzzer to read."""
    for name, contents in inputs().items():
        folder = WORK / "seeds" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for content in contents:
            (folder / digest(content)).write_bytes(content)


def digest(content: bytes) -> str:
    """Return the name of an input: libFuzzer's own, its SHA-1."""
    return hashlib.sha1(content).hexdigest()


def run(name: str, seconds: int) -> str | None:
    """Fuzz one target; return a line of figures, or None if it found something."""
    grown, found = WORK / "corpus" / name, WORK / "found"
    for folder in (grown, found, CORPUS / name):
        folder.mkdir(parents=True, exist_ok=True)
    lines, result = _libfuzzer(
        name,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={found}/{name}-",
        *(str(folder) for folder in (grown, CORPUS / name, WORK / "seeds" / name)),
    )
    said = [match for line in lines if (match := _SAYS.search(line))]
    if result != 0 or not said:
        print("\n".join(lines[-60:]))
        print(f"{name}: FOUND something; its input lies in {found.relative_to(ROOT)}:")
        print(f"    python -m fuzz.run {name} --repeat FILE")
        return None
    runs, covered, features, kept = (int(number) for number in said[-1].groups())
    return (
        f"{name}: {runs} inputs in {seconds} s ({runs / max(seconds, 1):.0f}/s), {covered} edges"
        f" and {features} features covered, {kept} inputs kept; nothing found"
    )


def keep(name: str) -> None:
    """Move what adds coverage into the corpus that is committed, as little of it as possible."""
    small = WORK / "small"
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir(parents=True)
    kept = CORPUS / name
    # Crashers of old stay, whatever they cover.
    sources = (kept, WORK / "seeds" / name, WORK / "corpus" / name)
    # Edges only: how often each is taken would keep several times as many.
    lines, result = _libfuzzer(name, "-merge=1", "-use_counters=0", str(small), *map(str, sources))
    if result != 0:
        raise SystemExit("\n".join(lines[-60:]))
    for path in kept.iterdir():
        if not path.name.startswith("found-"):
            path.unlink()
    for path in small.iterdir():
        if path.stat().st_size <= MAX_KEPT:
            shutil.copy(path, kept / path.name)
    sizes = [path.stat().st_size for path in kept.iterdir()]
    print(f"{name}: {len(sizes)} inputs of {sum(sizes)} bytes are kept")


def _libfuzzer(name: str, *arguments: str) -> tuple[list[str], int]:
    """Run libFuzzer in a process of its own; return what it says, and its status."""
    from fuzz.targets import MAX_LENGTHS

    command = [sys.executable, "-m", "fuzz.run", "--child", name]
    command += [f"-timeout={HANG_S}", f"-rss_limit_mb={MAX_MEMORY_MIB}", "-print_final_stats=1"]
    command += [f"-max_len={MAX_LENGTHS[name]}", "-verbosity=1", *arguments]
    made = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    return made.stdout.splitlines(), made.returncode


def repeat(name: str, path: Path) -> None:
    """Give a target one input, without instruments."""
    from fuzz import targets

    targets.forget_environment()
    targets.checked(targets.TARGETS[name], path.read_bytes())
    print(f"{name}: {path.name}: nothing is wrong with it")


def main() -> None:
    """Do what the command line asks for."""
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], help="default: all")
    parser.add_argument("--seconds", type=int, default=300, help="for all of them together")
    parser.add_argument(
        "--keep", action="store_true", help="what adds coverage, instead of fuzzing"
    )
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="that a target was given")
    arguments = parser.parse_args()
    names = arguments.targets or list(NAMES)
    if arguments.repeat:
        for name in names:
            repeat(name, arguments.repeat)
        return
    write_seeds()
    if arguments.keep:
        for name in names:
            keep(name)
        return
    whole = sum(SHARES[name] for name in names)
    failed = False
    for name in names:
        line = run(name, round(arguments.seconds * SHARES[name] / whole))
        failed = failed or line is None
        print(line or f"{name}: stopped at what it found", flush=True)
    # Not by an exception: the server that a target runs has threads.
    sys.stdout.flush()
    os._exit(failed)


if __name__ == "__main__":
    main()
