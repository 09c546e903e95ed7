"""The types of a parsed Program: its symbols, fake values made from written types, and written against propagated.

A size that depends on data (U0) gets its symbol from the operator that produces it; until then a stand-in holds its
place. Where a written size and a propagated one both stand for such a size and differ, the text is believed: it says
what the model's own assertions established.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from burnish.compiler.expressions import is_unbacked
from burnish.compiler.lexer import Token
from burnish.compiler.sizes import expression, same_size
from burnish.compiler.types_text import TensorType, TupleType, Type

__all__ = ["SymbolTable", "TypeMismatchError", "memory_order"]

Size: TypeAlias = Any  # a sympy.Expr, or an int
Bounds = tuple[int | None, int | None]


class TypeMismatchError(Exception):
    """A written type is not the propagated one."""


class SymbolTable:
    """The symbols of one text, in a shape environment of their own.

    Attributes:
        fake_mode: the mode of all fake values.
        hints: size of every symbol that inputs have, as assumed while types are propagated and in samples.
    """

    def __init__(self, known_sizes: Mapping[str, int]) -> None:
        """`known_sizes` gives the sizes that samples have, by the symbol's name in the text."""
        self.environment = ShapeEnv()
        # No fallback kernels: a text must never make a real operator run.
        self.fake_mode = FakeTensorMode(
            shape_env=self.environment, allow_fallback_kernels=False, allow_non_fake_inputs=False
        )
        self.hints: dict[sympy.Symbol, int] = {}
        self._known_sizes = known_sizes
        self._bounds: dict[str, Bounds] = {}
        self._symbols: dict[str, sympy.Symbol] = {}
        self._bound: dict[sympy.Symbol, sympy.Symbol] = {}
        self._stand_ins: dict[sympy.Symbol, str] = {}
        self._interned: dict[Any, torch.Tensor] = {}

    def declare(self, name: str, low: int | None, high: int | None) -> None:
        """Note the bounds of a symbol, before it is used."""
        self._bounds[name] = (low, high)

    def symbol(self, name: str, token: Token) -> sympy.Symbol:
        """Return the symbol called `name`, or its stand-in."""
        del token
        found = self._symbols.get(name)
        if found is None:
            found = self._symbols[name] = self._new(name)
        return found

    def hint(self, size: Size) -> int:
        """Return the value of `size` in samples; a size that depends on data counts 3."""
        if isinstance(size, int):
            return size
        values = {symbol: self.hints.get(symbol, 3) for symbol in size.free_symbols}
        return int(size.xreplace({symbol: sympy.Integer(value) for symbol, value in values.items()}))

    def make(self, kind: Type, like: torch.Tensor | None = None) -> Any:
        """Return a new fake value of the written type, contiguous or with the device and strides of `like`."""
        if isinstance(kind, TensorType):
            if like is not None and all(isinstance(size, int) for size in kind.shape):
                return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
            sizes = [self._integer(size) for size in kind.shape]
            order = None if like is None or like.dim() != len(sizes) or like.is_contiguous() else memory_order(like)
            if order is None:
                return torch.empty(sizes, dtype=kind.dtype)
            dense = torch.empty([sizes[index] for index in order], dtype=kind.dtype)
            return dense.permute([order.index(index) for index in range(len(order))])
        if isinstance(kind, TupleType):
            return tuple(self.make(item) for item in kind.items)
        if kind.kind == "sym":
            assert kind.value is not None
            return self._integer(kind.value)
        if kind.kind == "symbool":
            return self.environment.create_unbacked_symbool()
        return self.environment.create_unbacked_symfloat() if kind.kind == "symfloat" else None

    def intern(self, value: Any) -> Any:
        """Return the one fake tensor that stands for all of the type, strides and device of `value`."""
        if type(value) in (tuple, list):
            return type(value)(self.intern(item) for item in value)
        if not isinstance(value, torch.Tensor):
            return value
        sizes = tuple([expression(size) for size in value.shape])
        strides = tuple([expression(size) for size in value.stride()])
        return self._interned.setdefault((value.dtype, value.device, value.layout, sizes, strides), value)

    def reconcile(self, kind: Type, value: Any) -> Any:
        """Hold the written type against a propagated value, and return the value that the node gets.

        Raises:
            TypeMismatchError: they differ.
        """
        if isinstance(kind, TensorType):
            if not isinstance(value, torch.Tensor) or value.dtype != kind.dtype or value.dim() != len(kind.shape):
                raise TypeMismatchError
            same = [self._agree(*pair) for pair in zip(kind.shape, value.shape, strict=True)]
            if all(same):
                return value
            return torch.empty([self._integer(size) for size in kind.shape], dtype=kind.dtype, device=value.device)
        if isinstance(kind, TupleType):
            if not isinstance(value, (tuple, list)) or len(value) != len(kind.items):
                raise TypeMismatchError
            items = [self.reconcile(*pair) for pair in zip(kind.items, value, strict=True)]
            return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)
        if kind.kind == "sym" and kind.value is not None and isinstance(value, (int, torch.SymInt)):
            if not isinstance(value, bool):
                return value if self._agree(kind.value, value) else self._integer(kind.value)
        elif (
            (kind.kind == "symbool" and isinstance(value, (bool, torch.SymBool)))
            or (kind.kind == "symfloat" and isinstance(value, (float, torch.SymFloat)))
            or (kind.kind == "none" and value is None)
        ):
            return value
        raise TypeMismatchError

    def restore_bounds(self) -> None:
        """Undo what propagation narrowed: the bounds are those that the text states."""
        for name, symbol in self._symbols.items():
            self._set_bounds(name, self._bound.get(symbol, symbol))

    def _new(self, name: str) -> sympy.Symbol:
        if name[0] == "U":
            stand_in = sympy.Symbol(f"text_{name}", integer=True)
            self._stand_ins[stand_in] = name
            return stand_in
        hint = self._choose_hint(name)
        symbol = self.environment.create_symbol(
            hint, ConstantSource(name), DimDynamic.DYNAMIC, do_not_specialize_zero_one=True
        )
        self.hints[symbol] = hint
        self._set_bounds(name, symbol)
        return symbol

    def _choose_hint(self, name: str) -> int:
        if name in self._known_sizes:
            return self._known_sizes[name]
        low, high = self._bounds.get(name, (0, None))
        low = max(2, low or 0)
        if name == "B":
            return low if high is None or low <= high else high
        # Distinct, so that a mix-up of two dimensions shows.
        taken = set(self.hints.values())
        size = max(3, low)
        while size in taken and (high is None or size < high):
            size += 1
        return size if high is None or size <= high else high

    def _set_bounds(self, name: str, symbol: sympy.Symbol) -> None:
        low, high = self._bounds.get(name, (0, None))
        self.environment.var_to_range[symbol] = ValueRanges(
            -int_oo if low is None else sympy.Integer(low), int_oo if high is None else sympy.Integer(high)
        )

    def _integer(self, size: Size) -> int | torch.SymInt:
        value = self._resolved(size)
        for symbol in () if isinstance(value, int) else value.free_symbols:
            if symbol in self._stand_ins:
                self._bind(symbol, self.environment.create_unbacked_symint().node.expr)
        value = self._resolved(value)
        if isinstance(value, int) or value.is_Integer:
            return int(value)
        unbacked = any(is_unbacked(symbol) for symbol in value.free_symbols)
        hint = None if unbacked else self.hint(value)
        return self.environment.create_symintnode(value, hint=hint)

    def _resolved(self, size: Size) -> Size:
        if isinstance(size, int) or not self._stand_ins:
            return size
        return size.xreplace(self._bound)

    def _bind(self, stand_in: sympy.Symbol, symbol: sympy.Symbol) -> None:
        self._bound[stand_in] = symbol
        self._set_bounds(self._stand_ins[stand_in], symbol)

    def _agree(self, written: Size, size: int | torch.SymInt) -> bool:
        """Tell whether the sizes are the same expression; False when the text is to be believed."""
        have = expression(size)
        want = self._resolved(written)
        if want == have:
            return True
        new: set[Any] = set() if isinstance(have, int) else {each for each in have.free_symbols if is_unbacked(each)}
        if not new or isinstance(have, int):
            if not same_size(want, have, self.environment):
                raise TypeMismatchError
            return False
        waiting = [] if isinstance(want, int) else [each for each in want.free_symbols if each in self._stand_ins]
        fresh = list(new.difference(self._bound.values()))
        waiting = [each for each in waiting if each not in self._bound]
        if len(waiting) == 1 and len(fresh) == 1:
            self._bind(waiting[0], fresh[0])
        return bool(self._resolved(want) == have)


def memory_order(tensor: torch.Tensor) -> list[int] | None:
    """Return the dimensions in the order in which `tensor` lies densely in memory, or None if it does not."""
    order = sorted(range(tensor.dim()), key=lambda index: (-tensor.stride()[index], index))
    # By arithmetic, since a fake mode, where it is active, refuses operators on a real tensor.
    expected = 1
    for index in reversed(order):
        if tensor.shape[index] != 1 and tensor.stride()[index] != expected:
            return None
        expected *= tensor.shape[index]
    return order
