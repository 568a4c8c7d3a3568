"""The project speaks plain English in standard terms: a private dialect does not grow back.

`PROSE` is for every text: code, comments, docstrings, messages, protos, help, docs, deployment.
`NAMES` is for Python's identifiers, `OPENINGS` for the first words of docstrings. Each says what to
write instead.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Phrases, in upper or lower case.
PROSE = {
    r"who(ever|soever)": "the client, the caller, the thread: name the component",
    r"(gives?|gave|given|giving) way( to)?": "is evicted, is replaced, is preempted",
    r"(stands?|stood|standing) in line": "is queued",
    r"(comes?|came|coming) again": "is repeated, is retried",
    r"(let|lets|letting) go( of)?": "unload, release",
    r"turn(ed|s)? away": "reject",
    r"under way": "in flight, in progress",
    r"what stands": "name the thing",
    r"gr[ea]y image": "self-test image",
    r"(gave|given) up": "cancelled, timed out, abandoned",
    r"rescues?d?": "retry",
    r"timetables?": "deadline policy, completion estimator",
    r"(the|a) shelf": "LRU map",
    r"patience": "timeout",
    r"doors": "APIs, endpoints",
    r"nobody": "no client, no thread: name the component",
    r"faults? of ours|errors? of ours": "server error",
    r"clear text": "plaintext",
    r"be had\b": "is available",
    r"at hand": "available, in memory",
    r"a turn of the (event )?loop": "an iteration of the event loop",
    r"(some|any|every)body": "a client, any client, every client: name the component",
    r"what (came|comes|became|becomes) of": "the outcome, the result",
    r"(goes|go|went|going) on": "continue",
    r"(made|makes?) (it |them |others )?again": "retry, repeat",
    r"(in|takes?|took) the place of": "instead of, replace",
    r"signs? of life": "a keepalive ping, a response",
    r"(sent|sends?) away": "disconnect, reject",
    r"(is|are|was|were|who is) let in": "admitted, authorised",
}
# Whole identifiers.
NAMES = {
    r"_look|look|LOOK_S|LOOKS": "poll, POLL_INTERVAL_S",
    r"held|Held\w+|is_held": "loaded, LoadedVariant",
    r"patience\w*|Patience": "timeout, timeout_s",
    r"gave_up\w*|given_up|GivenUp|_?give_up": "cancelled",
    r"let_go\w*|turn_away|turned_away": "unload, reject, rejected",
    r"Readings|ask_loop|NoAnswer": "GaugeCollector, call_on_loop, LoopTimeout",
    r"Rescues?|Soundness|Timetable|Shelf|Flights?": "the table of layout names",
}
# First words of a docstring: it begins with a verb or a noun.
OPENINGS = {r"(What|Who|Whoever|Whose|That|Those)\b": "a verb (functions) or noun (classes)"}
# A comment, or the description of an argument or attribute, begins with a noun or a verb.
SUBJECTS = re.compile(r"^[ ]*(?:#|\w+:)[ ](?:What|Who|Whose|Whoever)[ ]\w+", re.MULTILINE)
# A sentence, in any text, whose subject is "what ...".
SENTENCES = re.compile(
    r"[.;]\s+(?:#\s+)?(?:What\s|what\s(?:[a-z]+\s){1,5}(?:is|are|was|were|takes?|has|stays?)\s)[^.?]*\."
)
SUFFIXES = {".py", ".proto", ".md", ".yaml", ".yml", ".json", ".conf", ".service", ".toml"}
# Generated, or about the words themselves.
EXEMPT = re.compile(r"_pb2(_grpc)?\.pyi?$|^tests/packaging/test_words\.py$|^fuzz/corpus/")

Finding = tuple[int, str]


def _any(patterns: dict[str, str], form: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(form.format("|".join(patterns)), flags)


_PROSE = _any(
    {key.replace(" ", r"\s+"): use for key, use in PROSE.items()},
    r"(?<![\w-])(?:{})(?!\w)",
    re.IGNORECASE,
)
_NAMES = _any(NAMES, r"\b(?:{})\b")
_OPENINGS = _any(OPENINGS, r"(?:{})")


def findings(path: str, text: str) -> Iterator[Finding]:
    """Yield line and finding, in no order."""
    for found in _PROSE.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[0]
    for found in SENTENCES.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[0].split())[:60]
    if not path.endswith(".py"):
        return
    for found in SUBJECTS.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[0].strip()
    if _NAMES.search(text) is not None:  # it may be in a text, where it is a word like any other
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and _NAMES.fullmatch(token.string):
                yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = _OPENINGS.match(ast.get_docstring(node) or "")
            if found is not None:
                yield getattr(node, "lineno", 1), f"docstring: {found[0]} …"


def paths() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [
        path
        for path in listed
        if Path(path).suffix in SUFFIXES and not EXEMPT.search(path) and (ROOT / path).exists()
    ]


@pytest.fixture(scope="module")
def found() -> dict[str, list[Finding]]:
    """Return the findings of each file of the project that has some."""
    each = {path: list(findings(path, (ROOT / path).read_text())) for path in paths()}
    return {path: some for path, some in each.items() if some}


def test_no_text_or_name_uses_the_private_dialect(found):
    wrong = [f"{path}:{line}: {word!r}" for path, some in found.items() for line, word in some]
    assert wrong == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("docs/x.md", "Whoever calls waits."),
        ("docs/x.md", "The old variant gives way."),
        ("x.proto", "// Images that come again."),
        ("x.json", '"title": "Errors of ours"'),
        ("x.py", "def f():\n    held = 1\n    return held"),
        ("x.py", "LOOK_S = 1"),
        ("x.py", 'class A:\n    """What a server counts."""'),
        ("x.py", "log('the batch was under way')  # and let go"),
        ("docs/x.md", "The client waits; what it sends is checked."),
        ("x.py", "# Images are read. What is\n# broken fails.\nx = 1"),
        ("docs/x.md", "Calls are made again, and everybody goes on."),
        ("x.py", "# What is waiting.\nx = 1"),
        ("x.py", '"""Count.\n\n    Args:\n        x: What is counted.\n"""'),
    ],
)
def test_a_planted_violation_is_found(path, text):
    assert list(findings(path, text))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("docs/x.md", "The client waits. Its images are checked. The lock is held."),
        (
            "x.py",
            'def looked_up():\n    """Return what was found."""\n    shelf_life = holding = 1',
        ),
    ],
)
def test_plain_english_is_not_a_violation(path, text):
    assert list(findings(path, text)) == []
