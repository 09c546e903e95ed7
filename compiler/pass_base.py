"""Pass: the base of everything that changes a Program."""

from __future__ import annotations

import types
import typing
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError
from burnish.compiler.facts import Fact
from burnish.compiler.numerics import Exact, Numerics
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.spec import SpecItem, SpecValue, format_spec

__all__ = ["Pass"]


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """A rewrite of Programs. Subclasses are frozen dataclasses whose fields are the options.

    Attributes:
        name: how pipelines call it.
        requires: facts that must hold before.
        establishes: facts that hold after.
        breaks: facts that may no longer hold after, unless established.
        numerics: what the pass promises about the numbers; the verifier holds it to this.
        idempotent: a second run changes nothing; verified at level 3.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[Fact]] = frozenset()
    establishes: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    numerics: ClassVar[Numerics] = Exact()
    idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options as a pipeline's text is checked; a pattern alone becomes a tuple of one.

        Raises:
            OptionError: an option has a value of the wrong type.
        """
        hints = typing.get_type_hints(type(self))
        for each in fields(self):
            if _is_plain(hints[each.name]):
                value = _coerce(self.name, each.name, hints[each.name], getattr(self, each.name))
                object.__setattr__(self, each.name, value)

    @abstractmethod
    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """Change `program` through `rewriter`; it is a copy, so raising leaves no trace."""

    def to_spec(self) -> SpecItem:
        """Return the pass as written in a pipeline, with the options that differ from their defaults."""
        options = [(each.name, getattr(self, each.name)) for each in fields(self)]
        changed = [(name, value) for name, value in options if value != type(self)._default(name)]
        return SpecItem(self.name, tuple((name, _plain(value)) for name, value in changed))

    def __str__(self) -> str:
        return format_spec([self.to_spec()])

    @classmethod
    def from_spec(cls, item: SpecItem) -> Pass:
        """Make the pass that `item` describes.

        Raises:
            OptionError: an option is unknown, given twice, missing, or has a value of the wrong type.
        """
        if item.body is not None:
            raise OptionError(f"pass {cls.name!r} takes no '(...)'")
        known = {each.name: each for each in fields(cls)}
        hints = typing.get_type_hints(cls)
        names = list(known)
        values: dict[str, Any] = {}
        for index, (given, value) in enumerate(item.options):
            name = given if given is not None else names[index] if index < len(names) else None
            if name is None or name not in known:
                offered = f"its options are {', '.join(names)}" if names else "it has none"
                raise OptionError(f"pass {cls.name!r} has no option {given or f'number {index + 1}'!r}: {offered}")
            if name in values:
                raise OptionError(f"pass {cls.name!r}: option {name!r} is given twice")
            values[name] = _coerce(cls.name, name, hints[name], value)
        try:
            return cls(**values)
        except TypeError as error:
            raise OptionError(f"pass {cls.name!r}: {str(error).partition(') ')[2] or error}") from error

    @classmethod
    def _default(cls, name: str) -> Any:
        field = cls.__dataclass_fields__[name]
        return field.default


def _plain(value: Any) -> SpecValue:
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_plain(each) for each in (sorted(value) if isinstance(value, (set, frozenset)) else value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # An object of Python's: text cannot say it, but the same pass should give the same text.
    return f"<{type(value).__name__}>"


def _is_plain(kind: Any) -> bool:
    """Tell whether text can say an option of this type; others are Python's alone."""
    if kind in (bool, int, float, str, type(None)) or typing.get_origin(kind) is typing.Literal:
        return True
    several = typing.get_origin(kind) in (typing.Union, types.UnionType, tuple)
    return several and all(_is_plain(each) for each in typing.get_args(kind) if each is not ...)


def _coerce(pass_name: str, name: str, kind: Any, value: SpecValue) -> Any:
    """Return `value` as the annotated type of an option."""
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if not _is_plain(kind) and not any(_is_plain(each) for each in parameters):
        raise OptionError(f"pass {pass_name!r}: option {name!r} is Python's: give the pass as an object, not as text")
    if origin in (typing.Union, types.UnionType):
        for each in parameters:
            try:
                return _coerce(pass_name, name, each, value)
            except OptionError:
                continue
    elif kind is type(None) and value is None:
        return None
    elif origin is typing.Literal and value in parameters:
        return value
    elif origin is tuple:
        items = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(_coerce(pass_name, name, parameters[0], each) for each in items)
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise OptionError(f"pass {pass_name!r}: option {name!r} must be {_wanted(kind)}, but is {value!r}")


def _wanted(kind: Any) -> str:
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(map(repr, parameters))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_wanted, parameters))
    return "none" if kind is type(None) else getattr(kind, "__name__", str(kind))
