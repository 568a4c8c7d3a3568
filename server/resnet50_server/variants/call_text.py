"""Parse Python calls as text: what `print` shows of a torchvision transform, or its source code.

The text is never evaluated. Different spellings of the same value are read alike: lists and tuples
are lists, and of a dotted name the last part is kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

MAX_CHARACTERS = 64 * 1024
MAX_DEPTH = 16
_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+)
    |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
    |(?P<name>[A-Za-z_][\w.]*)
    |(?P<string>'[^'\n]*'|"[^"\n]*")
    |(?P<object><[^<>\n]*(?:<[^<>\n]*>[^<>\n]*)*>)
    |(?P<sign>[][()=,:])""",
    re.VERBOSE,
)
# Of `<function <lambda> at 0x7f..>`, `<__main__.Pad object at 0x7f..>`, `<class 'a.b.Resize'>`.
_OBJECT_NAME = re.compile(r"<(?:function |class |bound method )?['\"]?([\w.<>]*)")
_CONSTANTS = {"None": None, "True": True, "False": False}
_OPENING, _CLOSING = "([", {"(": ")", "[": "]"}


@dataclass(frozen=True)
class Call:
    """A call, or an object as Python shows one without arguments.

    Attributes:
        name: The last part of its dotted name.
        positional: Its positional arguments.
        named: Its arguments by name.
    """

    name: str
    positional: list[Value] = field(default_factory=list)
    named: dict[str, Value] = field(default_factory=dict)


Value: TypeAlias = "Call | list[Value] | str | int | float | bool | None"
"""A parsed value; names that are not called are strings."""


def parse_call(text: str) -> Call:
    """Parse a text that is one call, or a variable that is assigned one.

    Raises:
        ValueError: It is something else; says in which line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    parser = _Parser(text)
    value = parser.value()
    if isinstance(value, str) and parser.take("="):
        value = parser.value()
    if not parser.at_end:
        parser.fail()
    if not isinstance(value, Call):
        raise ValueError("is not a transform such as Compose(...) or ImageClassification(...)")
    return value


class _Parser:
    """A recursive descent over the tokens of a text.

    Args:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = self._depth = 0
        self._kind = self._token = ""
        self._advance()

    @property
    def at_end(self) -> bool:
        """Whether all of it has been read."""
        return not self._kind

    def take(self, sign: str) -> bool:
        """Read a sign if it is the next token; return whether it was."""
        found = self._kind == "sign" and self._token == sign
        if found:
            self._advance()
        return found

    def value(self) -> Value:
        """Read a value."""
        kind, token = self._kind, self._token
        if kind == "sign" and token in _OPENING:
            self._advance()
            values, named = self._items(_CLOSING[token])
            if named:
                self.fail()
            return values
        if kind in ("", "sign"):
            self.fail()
        self._advance()
        if kind == "number":
            return float(token) if re.search(r"[.eE]", token) else int(token)
        if kind == "string":
            return token[1:-1]
        if kind == "object":
            found = _OBJECT_NAME.match(token)
            name = _last_part(found[1] if found else token)
            # A class, or a member of an enum: `<InterpolationMode.BILINEAR: 'bilinear'>`.
            return name if token.startswith("<class ") or ": " in token else Call(name)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if self.take("("):
            return Call(_last_part(token), *self._items(")"))
        return _last_part(token)

    def fail(self) -> NoReturn:
        """Raise ValueError for the next token."""
        line = self._text.count("\n", 0, self._at) + 1
        what = f"{self._token[:40]!r} is not expected here" if self._kind else "it ends too early"
        raise ValueError(f"line {line}: {what}")

    def _items(self, closing: str) -> tuple[list[Value], dict[str, Value]]:
        """Read values up to a bracket; commas between them may be missing, as in what is shown."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"has more than {MAX_DEPTH} brackets within each other")
        values: list[Value] = []
        named: dict[str, Value] = {}
        while not self.take(closing):
            value = self.value()
            if self.take(":"):
                continue  # the "(0): " before a module of a Sequential
            if isinstance(value, str) and self.take("="):
                named[value] = self.value()
            else:
                values.append(value)
            self.take(",")
        self._depth -= 1
        return values, named

    def _advance(self) -> None:
        """Read the next token; the kind is "" at the end."""
        self._at += len(self._token)
        self._kind = "space"
        while self._kind == "space":
            found = _TOKEN.match(self._text, self._at)
            if found is None:
                self._kind, self._token = "", self._text[self._at : self._at + 1]
                if self._token:
                    self._kind = "sign"
                    self.fail()
                return
            self._kind, self._token = found.lastgroup or "", found[0]
            if self._kind == "space":
                self._at += len(self._token)


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
