"""The pipeline grammar: `fold-batch-norm,prune{ratio=0.4,round_to=8},repeat{max=4}(cse,dce)`.

    pipeline := [item ("," item)*]
    item     := name ["{" [option ("," option)*] "}"] ["(" pipeline ")"]
    option   := [name "="] value
    value    := number | "true" | "false" | "none" | word | quoted string | "[" [value ("," value)*] "]"

An option without a name takes the pass's options in the order of their declaration. This file knows no pass: it
turns text into `SpecItem`s and back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from burnish.compiler.errors import PipelineError

__all__ = ["SpecItem", "SpecValue", "format_spec", "parse_spec"]

SpecValue = bool | int | float | str | tuple["SpecValue", ...] | None

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|inf\b|nan\b)(?![\w*?.-]))
      | (?P<word>[A-Za-z_*?.][\w*?./:-]*)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<mark>[{}()\[\],=])
    )""",
    re.VERBOSE,
)
_WORDS: dict[str, SpecValue] = {"true": True, "false": False, "none": None, "True": True, "False": False, "None": None}
_PLAIN = re.compile(r"[A-Za-z_*?][\w*?./:-]*\Z")
_DEEPEST = 20
_QUOTES = "texts with other signs than letters stand in quotes"


@dataclass(frozen=True, slots=True)
class SpecItem:
    """One pass as written: its name, its options in order (the name is None for a positional one), its body."""

    name: str
    options: tuple[tuple[str | None, SpecValue], ...] = ()
    body: tuple[SpecItem, ...] | None = None


def parse_spec(text: str) -> tuple[SpecItem, ...]:
    """Parse a pipeline text.

    Raises:
        PipelineError: the text does not follow the grammar; the message shows the place.
    """
    return _Parser(text).whole()


def format_spec(items: Iterable[SpecItem]) -> str:
    """Return the text of `items`, without spaces; `parse_spec` reads it back."""
    return ",".join(_format_item(item) for item in items)


def _format_item(item: SpecItem) -> str:
    options = ",".join((f"{name}=" if name else "") + _format_value(value) for name, value in item.options)
    braces = f"{{{options}}}" if options else ""
    body = f"({format_spec(item.body)})" if item.body is not None else ""
    return item.name + braces + body


def _format_value(value: SpecValue) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        plain = _PLAIN.match(value) and value not in _WORDS and value not in ("inf", "nan")
        return value if plain else json.dumps(value)
    return f"[{','.join(_format_value(each) for each in value)}]"


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        position = 0
        while position < len(text) and text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                self._fail(
                    f"unexpected character: {_QUOTES}",
                    position + len(text[position:]) - len(text[position:].lstrip()),
                )
            kind = match.lastgroup
            self.tokens.append((kind, match.group(kind), match.start(kind)))
            position = match.end()
        self.tokens.append(("end", "", len(text)))
        self.at = 0

    def whole(self) -> tuple[SpecItem, ...]:
        items = self._pipeline("end", 0) if self.tokens[0][0] != "end" else ()
        if self.tokens[self.at][0] != "end":
            self._fail("expected ',' or the end", self.tokens[self.at][2])
        return items

    def _pipeline(self, closer: str, depth: int) -> tuple[SpecItem, ...]:
        if depth > _DEEPEST:
            self._fail(f"nested deeper than {_DEEPEST}", self.tokens[self.at][2])
        if self._peek() == closer:
            return ()
        items = [self._item(depth)]
        while self._take(","):
            items.append(self._item(depth))
        return tuple(items)

    def _item(self, depth: int) -> SpecItem:
        kind, name, place = self.tokens[self.at]
        if kind != "word":
            self._fail("expected the name of a pass", place)
        self.at += 1
        options: list[tuple[str | None, SpecValue]] = []
        body: tuple[SpecItem, ...] | None = None
        if self._take("{"):
            while not self._take("}"):
                if options:
                    self._expect(",")
                options.append(self._option())
        if self._take("("):
            body = self._pipeline(")", depth + 1)
            self._expect(")")
        return SpecItem(name, tuple(options), body)

    def _option(self) -> tuple[str | None, SpecValue]:
        kind, name, _ = self.tokens[self.at]
        if kind == "word" and self.tokens[self.at + 1][1] == "=":
            self.at += 2
            return name, self._value(0)
        return None, self._value(0)

    def _value(self, depth: int) -> SpecValue:
        kind, text, place = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            is_float = any(mark in text for mark in ".einfa")
            if not is_float and len(text) > 30:
                self._fail("a whole number of more than 30 digits", place)
            return float(text) if is_float else int(text)
        if kind == "word":
            return _WORDS.get(text, text)
        if kind == "string":
            try:
                return str(json.loads(text))
            except ValueError:
                self._fail("not a string", place)
        if text == "[" and depth < _DEEPEST:
            values: list[SpecValue] = []
            while not self._take("]"):
                if values:
                    self._expect(",")
                values.append(self._value(depth + 1))
            return tuple(values)
        self.at -= 1
        self._fail("expected a value", place)

    def _peek(self) -> str:
        return self.tokens[self.at][1]

    def _take(self, mark: str) -> bool:
        if self.tokens[self.at][:2] == ("mark", mark):
            self.at += 1
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            hint = f": {_QUOTES}" if mark == "," else ""
            self._fail(f"expected {mark!r}{hint}", self.tokens[self.at][2])

    def _fail(self, message: str, place: int) -> NoReturn:
        start = max(0, place - 60)
        line = " ".join(self.text[start : place + 60].split("\n"))
        raise PipelineError(f"in the pipeline text: {message}\n    {line}\n    {' ' * (place - start)}^")
