"""Stand-ins: types of operators that want to know something of a size which only the data decide.

Some of PyTorch's own rules ask whether there is any element at all (a batch norm), and refuse sizes that depend on data
(what `nonzero` returns). A size of the ordinary kind stands in for each of these, and in the result they are put back:
whatever an operator makes of the one, it makes of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, GuardOnDataDependentSymNode, ShapeEnv
from torch.utils import _pytree as pytree

from burnish.compiler.expressions import is_unbacked
from burnish.compiler.sizes import expression

__all__ = ["is_settled", "settled", "type_of", "unsettled"]

_HINT = 11
_known: WeakKeyDictionary[ShapeEnv, dict[sympy.Symbol, sympy.Symbol]] = WeakKeyDictionary()


def type_of(function: Callable[..., Any], args: Any, kwargs: Any, environment: ShapeEnv | None) -> Any:
    """Return the type of a call, its arguments being types; call it where operators run on types."""
    try:
        return function(*args, **kwargs)
    except GuardOnDataDependentSymNode:
        assert environment is not None
    known = _stand_ins((args, kwargs), environment)
    given_args, given_kwargs = _substituted((args, kwargs), known, environment)
    result = function(*given_args, **given_kwargs)
    return _substituted(result, {new: old for old, new in known.items()}, environment)


def settled(value: Any, environment: ShapeEnv | None) -> Any:
    """Return a type with ordinary sizes in place of those that depend on data; itself where there are none."""
    if environment is None or not any(map(is_unbacked, _symbols(value))):
        return value
    return _substituted(value, _stand_ins(value, environment), environment)


def unsettled(value: Any, environment: ShapeEnv) -> Any:
    """Return a type with the sizes that depend on data in place of what stood in for them."""
    known = _known.get(environment, {})
    return _substituted(value, {new: old for old, new in known.items()}, environment)


def is_settled(value: Any, environment: ShapeEnv | None) -> bool:
    """Tell whether a type has ordinary sizes in place of those that depended on data."""
    known = _known.get(environment, {}) if environment is not None else {}
    return not set(known.values()).isdisjoint(_symbols(value))


def _stand_ins(values: Any, environment: ShapeEnv) -> dict[sympy.Symbol, sympy.Symbol]:
    """Return what stands in for sizes that depend on data, those of `values` among them."""
    known = _known.setdefault(environment, {})
    for symbol in _symbols(values):
        if is_unbacked(symbol) and symbol not in known:
            known[symbol] = environment.create_symbol(
                _HINT + len(known),
                ConstantSource(f"_stands_in_{len(known)}"),
                DimDynamic.DYNAMIC,
                do_not_specialize_zero_one=True,
            )
    return known


def _symbols(values: Any) -> list[sympy.Symbol]:
    return [each for size in _sizes(values) for each in getattr(expression(size), "free_symbols", ())]


def _sizes(values: Any) -> list[Any]:
    found = []
    for each in pytree.tree_leaves(values):
        found += [*each.shape, *each.stride()] if isinstance(each, torch.Tensor) else [each]
    return [each for each in found if isinstance(each, torch.SymInt)]


def _substituted(values: Any, symbols: dict[sympy.Symbol, sympy.Symbol], environment: ShapeEnv) -> Any:
    def size(each: int | torch.SymInt) -> Any:
        found = expression(each)
        if not symbols.keys() & getattr(found, "free_symbols", set()):
            return each
        return environment.create_symintnode(found.xreplace(symbols), hint=None)

    def value(each: Any) -> Any:
        if isinstance(each, torch.SymInt):
            return size(each)
        if not isinstance(each, torch.Tensor) or all(size(n) is n for n in (*each.shape, *each.stride())):
            return each
        sizes, strides = [size(n) for n in each.shape], [size(n) for n in each.stride()]
        return torch.empty_strided(sizes, strides, dtype=each.dtype, device=each.device)

    return pytree.tree_map(value, values)
