"""Tokens of the text form, one line at a time, and the cursor that the recursive descent moves over them.

Every statement of the text form stands on one line, so a line is all that is ever held as tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeVar

from burnish.compiler.errors import TextError

__all__ = ["NAME", "Cursor", "Token", "quoted_name"]

NAME = re.compile(r"[0-9A-Za-z_.]+")
"""A name that is written after `%`, `@` or `&` without quotes."""

MAX_DEPTH = 64
_MAX_DIGITS = 400

_STRING = r'"(?:[^"\\\x00-\x1f]|\\.)*"'
_TOKEN = re.compile(
    rf"(?P<space>[ \t]+)|(?P<reference>[%@&](?:[0-9A-Za-z_.]+|{_STRING}))"
    r"|(?P<word>[A-Za-z_][0-9A-Za-z_]*(?:\.[0-9A-Za-z_]+)*)"
    r"|(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    rf"|(?P<string>{_STRING})|(?P<punctuation>\*\*|//|\.\.|<=|>=|==|!=|[()\[\]{{}},:=!+*/<>-])|(?P<bad>.)",
    re.ASCII | re.DOTALL,
)

T = TypeVar("T")


class Token(NamedTuple):
    """A piece of a line.

    Attributes:
        kind: "reference", "word", "number", "string", "punctuation", or "end" after the last one.
        text: as written.
        column: 1-based.
    """

    kind: str
    text: str
    column: int


class Cursor:
    """Reads the tokens of one line from left to right; every error is a TextError that shows the place."""

    def __init__(self, source: str, line: str, number: int) -> None:
        """Split `line`, which is line `number` (1-based) of `source`, into tokens."""
        self.source = source
        self.number = number
        self._index = 0
        self._depth = 0
        self._tokens = [
            Token(match.lastgroup or "", match.group(), match.start() + 1)
            for match in _TOKEN.finditer(line)
            if match.lastgroup != "space"
        ]
        self._tokens.append(Token("end", "", len(line) + 1))
        for token in self._tokens:
            if token.kind == "bad":
                self.fail(f"unexpected character {token.text!r}", token.column)

    @property
    def token(self) -> Token:
        """The token to be read next."""
        return self._tokens[self._index]

    def fail(self, message: str, column: int | None = None) -> NoReturn:
        """Raise a TextError at `column`, by default at the next token."""
        place = self.token.column if column is None else column
        raise TextError(message, source=self.source, line=self.number, column=place)

    def next(self) -> Token:
        """Take the next token."""
        token = self._tokens[self._index]
        if token.kind != "end":
            self._index += 1
        return token

    def accept(self, text: str) -> bool:
        """Take the next token if it is `text`, outside quotes."""
        token = self._tokens[self._index]
        if token.text == text and token.kind != "string":
            self._index += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Take the next token, which has to be `text`."""
        if not self.accept(text):
            self.fail(f"expected {text!r}, found {self._found()}")

    def take(self, kind: str, what: str) -> Token:
        """Take the next token, which has to be of `kind`; `what` says in words what is missing."""
        token = self._tokens[self._index]
        if token.kind != kind:
            self.fail(f"expected {what}, found {self._found()}")
        self._index += 1
        return token

    def reference(self, sigil: str, what: str) -> str:
        """Take a reference that begins with `sigil` and return its name."""
        token = self._tokens[self._index]
        if token.kind != "reference" or token.text[0] != sigil:
            self.fail(f"expected {what} ({sigil}name), found {self._found()}")
        self._index += 1
        return self.unquote(token)

    def name_before(self, text: str) -> str | None:
        """Take a word or string and the `text` that follows it, if they are next, and return the name."""
        token = self._tokens[self._index]
        if token.kind not in ("word", "string") or self._tokens[self._index + 1].text != text:
            return None
        self._index += 2
        return self.unquote(token)

    def unquote(self, token: Token) -> str:
        """Return the name in a reference, or the text in a string."""
        text = token.text[1:] if token.kind == "reference" else token.text
        if not text.startswith('"'):
            return text
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise TextError(
                f"not a JSON string: {error}", source=self.source, line=self.number, column=token.column
            ) from error

    def end(self) -> None:
        """Check that the line has nothing left."""
        if self.token.kind != "end":
            self.fail(f"expected the end of the line, found {self._found()}")

    def integer(self, token: Token) -> int:
        """Return the value of a number token, which has to be an integer."""
        if not token.text.isdigit() or len(token.text) > _MAX_DIGITS:
            self.fail(f"{token.text[:40]!r} is not an integer", token.column)
        return int(token.text)

    def items(self, closing: str, read: Callable[[], T]) -> list[T]:
        """Read items up to `closing`, separated by commas; the opening bracket has been taken."""
        return self.items_and_comma(closing, read)[0]

    def items_and_comma(self, closing: str, read: Callable[[], T]) -> tuple[list[T], bool]:
        """Like `items`, and tell whether a comma stood before `closing`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self.fail(f"brackets are nested more than {MAX_DEPTH} deep")
        found: list[T] = []
        comma = False
        while not self.accept(closing):
            if found and not comma:
                self.fail(f"expected ',' or {closing!r}, found {self._found()}")
            found.append(read())
            comma = self.accept(",")
        self._depth -= 1
        return found, comma

    def _found(self) -> str:
        token = self.token
        return "the end of the line" if token.kind == "end" else repr(token.text[:40])


def quoted_name(name: str) -> str:
    """Return `name` as it is written after a sigil: in JSON quotes when it has other than letters, digits, `_`, `.`."""
    return name if NAME.fullmatch(name) and name.isascii() else json.dumps(name)
