"""Python values as TorchScript source, according to the type that an operator's schema wants.

Cases not handled: values that are no part of a graph's arguments (generators, storages): `UnwritableError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

__all__ = ["UnwritableError", "literal"]

_LIST = re.compile(r"^(?:Optional\[)?List\[(.+?)\]\]?$")
_SMALLEST = -(2**63)


class UnwritableError(Exception):
    """A value has no form in TorchScript source; the text says which."""


def literal(value: Any, kind: str, reference: Callable[[fx.Node], str]) -> str:
    """Return `value` as an expression.

    Args:
        value: nodes, numbers, strings, dtypes, devices, None, and lists of them.
        kind: the schema's type, "List[int]" or "Optional[Tensor]" for instance; "" when there is none.
        reference: the expression of a node.

    Raises:
        UnwritableError: no expression stands for it.
    """
    if isinstance(value, (list, tuple)):
        return _list(list(value), kind, reference)
    if isinstance(value, fx.Node):
        text = reference(value)
        # An integer size is no float to TorchScript's overload resolution.
        is_size = isinstance(value.meta.get("val"), (int, torch.SymInt))
        return f"float({text})" if kind in ("float", "Optional[float]") and is_size else text
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int):
        return _number(float(value)) if kind in ("float", "Optional[float]") else _number(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, complex):
        return f"complex({_number(value.real)}, {_number(value.imag)})"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    raise UnwritableError(f"a {type(value).__name__} cannot be written as TorchScript")


def _list(values: list[Any], kind: str, reference: Callable[[fx.Node], str]) -> str:
    found = _LIST.match(kind)
    inner = found.group(1) + ("]" if found.group(1).count("[") > found.group(1).count("]") else "") if found else ""
    text = f"[{', '.join(literal(each, inner, reference) for each in values)}]"
    # TorchScript takes [] for a list of tensors, and refuses to mix None with tensors, unless told the type.
    if inner and (not values or inner.startswith("Optional")):
        return f"torch.jit.annotate(List[{inner}], {text})"
    return text


def _number(value: int | float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    # The lexer reads the sign apart from the digits, which do not fit into 64 bits by themselves.
    return f"({_SMALLEST + 1} - 1)" if value == _SMALLEST and isinstance(value, int) else repr(value)


def _string(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise UnwritableError(f"the string {value!r} cannot be written as TorchScript")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
