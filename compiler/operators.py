"""Operators by name, and their arguments by schema.

An operator's name is `namespace.name` for the default overload and `namespace.name.overload` otherwise
(`aten.conv2d`, `aten.add.Tensor`). Python's own operators on symbolic sizes are `py.mul` and so on, torch's are
`sym.max`, higher-order operators are `higher_order.cond`.
"""

from __future__ import annotations

import functools
import importlib
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from burnish.compiler.errors import BurnishError

__all__ = [
    "Operator",
    "Schema",
    "argument",
    "arguments",
    "find_operator",
    "is_mutating",
    "is_random",
    "operator_name",
    "schema_of",
]

Operator = Callable[..., Any]

_PYTHON = ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge")
_PYTHON_MORE = ("and_", "or_", "xor", "not_", "pos", "abs", "lshift", "rshift")
_NAMED: dict[str, Operator] = {f"py.{name}": getattr(operator, name) for name in (*_PYTHON, *_PYTHON_MORE)}
_NAMED |= {"getitem": operator.getitem, "py.ceil": math.ceil, "py.floor": math.floor, "py.trunc": math.trunc}
_NAMED |= {"py.round": round, "py.max": max, "py.min": min}
_NAMED |= {
    f"sym.{name.removeprefix('sym_')}": getattr(torch, name)
    for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum")
    if hasattr(torch, name)
}
_NAMES: dict[Operator, str] = {target: name for name, target in _NAMED.items()}
# Operators that live in a module which torch does not import by itself.
_LAZY_NAMESPACES = {
    "burnish": "burnish.compiler.fused",
    "quantized_decomposed": "torch.ao.quantization.fx._decomposed",
}


# By identity, since an operator's own hash is a call of Python; the operator is kept, so that its identity stays its.
_schemas: dict[int, tuple[Operator, Schema]] = {}


@dataclass(frozen=True, slots=True)
class Schema:
    """The arguments of an operator: names in order, defaults, how many may be given by position, and some by kind."""

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    positional: int
    tensors: frozenset[str]
    devices: frozenset[str]


@functools.cache
def operator_name(target: Operator) -> str:
    """Return the name under which `target` is printed."""
    if isinstance(target, OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        overload = target._schema.overload_name
        return f"{namespace}.{name}.{overload}" if overload else f"{namespace}.{name}"
    if isinstance(target, HigherOrderOperator):
        return f"higher_order.{target.__name__}"
    if target in _NAMES:
        return _NAMES[target]
    raise BurnishError(f"{target!r} is not an operator that a Program can hold")


@functools.cache
def find_operator(name: str) -> Operator:
    """Return the operator called `name`.

    Raises:
        BurnishError: no such operator is registered.
    """
    if name in _NAMED:
        return _NAMED[name]
    parts = name.split(".")
    if parts[0] == "higher_order" and len(parts) == 2 and not parts[1].startswith("_"):
        found = getattr(torch.ops.higher_order, parts[1], None)
        if isinstance(found, HigherOrderOperator):
            return found
    elif len(parts) in (2, 3) and not any(part.startswith("__") and not part.endswith("__") for part in parts):
        if parts[0] in _LAZY_NAMESPACES:
            importlib.import_module(_LAZY_NAMESPACES[parts[0]])
        packet = getattr(getattr(torch.ops, parts[0]), parts[1], None) if parts[0].isidentifier() else None
        overload = parts[2] if len(parts) == 3 else "default"
        if packet is not None and overload in getattr(packet, "overloads", list)():
            target = getattr(packet, overload)
            if isinstance(target, OpOverload):
                return target
    raise BurnishError(f"no operator is called {name!r}: is the library that registers it imported?")


def schema_of(target: Operator | str) -> Schema | None:
    """Return the schema of `target`, or None for what has none: Python's operators, higher-order ones, constants."""
    known = _schemas.get(id(target))
    if known is None:
        if not isinstance(target, OpOverload):
            return None
        known = _schemas[id(target)] = target, _read_schema(target)
    return known[1]


def _read_schema(target: OpOverload[..., Any]) -> Schema:
    known = target._schema.arguments
    return Schema(
        names=tuple(each.name for each in known),
        defaults={each.name: each.default_value for each in known if each.has_default_value()},
        positional=sum(not each.kwarg_only for each in known),
        tensors=frozenset(each.name for each in known if "Tensor" in str(each.type)),
        devices=frozenset(each.name for each in known if "Device" in str(each.type)),
    )


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of `node` by schema name, defaults filled in.

    Operators without a schema get "0", "1", ... as the names of their positional arguments.
    """
    schema = schema_of(node.target)
    if schema is None:
        return {str(index): value for index, value in enumerate(node.args)} | dict(node.kwargs)
    values = dict(schema.defaults)
    values.update(zip(schema.names, node.args, strict=False))
    values.update(node.kwargs)
    return values


def argument(node: fx.Node, name: str) -> Any:
    """Return one argument of `node` by schema name, or its default."""
    return arguments(node)[name]


@functools.cache
def is_mutating(target: Operator) -> bool:
    """Tell whether `target` writes to one of its inputs."""
    return isinstance(target, OpOverload) and bool(target._schema.is_mutable)


def is_random(node: fx.Node) -> bool:
    """Tell whether `node` draws random numbers: dropout that is switched off does not."""
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    values = arguments(node)
    switched_off = values.get("train", values.get("training", True)) is False
    return not switched_off and values.get("dropout_p", values.get("p")) != 0.0
