"""Which operators TorchScript can call, and Python's operators on sizes as TorchScript expressions.

Cases not handled: higher-order operators other than `cond`, and operators that libtorch alone does not have (those
registered from Python or by another library): a saved file could not run where only libtorch is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from burnish.backends.torchscript.quantized_arithmetic import ARITHMETIC
from burnish.compiler.conditional import COND
from burnish.compiler.operators import operator_name

__all__ = ["METHODS", "SIZE_OPERATORS", "method_of", "refusal", "size_expression"]

_NATIVE = ("aten",)

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "floordiv": "//",
    "truediv": "/",
    "mod": "%",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lshift": "<<",
    "rshift": ">>",
}
_LOGIC = {"and_": ("and", "&"), "or_": ("or", "|"), "xor": ("!=", "^")}
_PREFIX = {
    "py.neg": "(-{})",
    "py.pos": "{}",
    "py.abs": "abs({})",
    "py.not_": "(not {})",
    "sym.not": "(not {})",
    "py.ceil": "math.ceil({})",
    "py.floor": "math.floor({})",
    "py.trunc": "int({})",
    "sym.int": "int({})",
    "sym.float": "float({})",
}
_NESTED = {"py.max": "max", "sym.max": "max", "py.min": "min", "sym.min": "min"}

# Reads of a tensor's type: written as methods, which is what every version of TorchScript has.
SIZE_OPERATORS: dict[Any, str] = {
    torch.ops.aten.sym_size.int: "{}.size({})",
    torch.ops.aten.sym_size.default: "{}.size()",
    torch.ops.aten.sym_stride.int: "{}.stride({})",
    torch.ops.aten.sym_numel.default: "{}.numel()",
    torch.ops.aten.sym_storage_offset.default: "{}.storage_offset()",
}

# Operators of other libraries that libtorch computes with a few of its own: name of a method, and its source.
METHODS: dict[str, tuple[str, str]] = {
    **ARITHMETIC,
    # transformers: the rows of `input` up to offs[i] times weight[i], one matrix per expert.
    "transformers::grouped_mm_fallback": (
        "grouped_mm",
        """\
def grouped_mm(self, input: Tensor, weight: Tensor, offs: Tensor):
  result = torch.zeros([input.size(0), weight.size(2)], dtype=input.dtype, device=input.device)
  start = 0
  for index in range(weight.size(0)):
    end = int(offs[index])
    result[start:end] = torch.mm(input[start:end], weight[index])
    start = end
  return result
""",
    ),
}


def refusal(node: fx.Node) -> str | None:
    """Return why TorchScript cannot call the operator of `node`, or None when it can."""
    target: Any = node.target
    if isinstance(target, HigherOrderOperator):
        return None if target is COND else "TorchScript has no such higher-order operator, only cond"
    if not isinstance(target, OpOverload):
        name = operator_name(target)
        known = name == "getitem" or size_expression(name, ["_"] * max(3, len(node.args)), node.meta.get("val"))
        return None if known else "TorchScript has no such operator on numbers"
    if method_of(target) is not None:
        return None
    if target.namespace not in _NATIVE:
        return (
            f"the operator is not part of libtorch: a file that calls it would need the library of {target.namespace!r}"
        )
    if target is torch.ops.aten.view.dtype:
        return "TorchScript does not find this overload: every view is one with sizes to it"
    try:
        torch._C._get_schema(target._schema.name, target._schema.overload_name)
    except RuntimeError:
        return "the operator has no TorchScript schema in this version of PyTorch"
    return None


def method_of(target: Any) -> tuple[str, str] | None:
    """Return name and source of the method that stands for the operator `target`; None where it is called itself."""
    if not isinstance(target, OpOverload):
        return None
    name, overload = target._schema.name, target._schema.overload_name
    return METHODS.get(f"{name}.{overload}" if overload else name)


def size_expression(name: str, operands: Sequence[str], value: Any) -> str | None:
    """Return the expression for the operator `name` (`py.add`, `sym.max`) on `operands`, or None when there is none.

    Args:
        name: name of the operator.
        operands: expressions of its arguments.
        value: the result's type (`node.meta["val"]`).
    """
    short = name.removeprefix("py.")
    if short in _INFIX:
        return f"({operands[0]} {_INFIX[short]} {operands[1]})"
    if short in _LOGIC:
        return f"({operands[0]} {_LOGIC[short][not isinstance(value, (bool, torch.SymBool))]} {operands[1]})"
    if name in _PREFIX:
        return _PREFIX[name].format(operands[0])
    if name in _NESTED:
        return _fold(lambda left, right: f"{_NESTED[name]}({left}, {right})", operands)
    if name == "sym.sum":
        return f"({' + '.join(operands)})"
    if name == "sym.ite":
        return f"({operands[1]} if {operands[0]} else {operands[2]})"
    is_integer = isinstance(value, (int, torch.SymInt))
    if name == "py.pow":
        # TorchScript's power of two integers is a float.
        return f"int({operands[0]} ** {operands[1]})" if is_integer else f"({operands[0]} ** {operands[1]})"
    if name == "py.round" and is_integer:
        return f"int(round({operands[0]}))"
    return None


def _fold(join: Callable[[str, str], str], operands: Sequence[str]) -> str:
    text = operands[0]
    for each in operands[1:]:
        text = join(text, each)
    return text
