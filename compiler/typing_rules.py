"""Types of nodes: run the operator on fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.fx.experimental._config as symbolic_config
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from burnish.compiler.conditional import branch_module
from burnish.compiler.errors import VerificationError
from burnish.compiler.graphs import name_of
from burnish.compiler.operators import operator_name
from burnish.compiler.stand_ins import type_of

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["infer", "on_types", "type_key"]

_UNCACHED = {
    torch.Tag.dynamic_output_shape,
    torch.Tag.data_dependent_output,
    torch.Tag.nondeterministic_seeded,
}
_SIMPLE = (torch.Tensor, int, float, torch.SymInt)
# Deep models repeat the same operators on the same types: by fake mode, whose symbols the types are made of.
_known: WeakKeyDictionary[FakeTensorMode, dict[Any, Any]] = WeakKeyDictionary()


def infer(program: Program, node: fx.Node) -> Any:
    """Return the type of an operator node: a FakeTensor, a number or SymInt, or a tuple of these.

    Raises:
        VerificationError: the operator refuses these arguments.
    """
    if not _is_cacheable(node):
        return _infer(program, node)
    known = _known.setdefault(program.fake_mode, {})
    key = type_key(node)
    if key not in known:
        known[key] = _infer(program, node)
    return known[key]


def _is_cacheable(node: fx.Node) -> bool:
    target = node.target
    return (
        isinstance(target, OpOverload)
        and _UNCACHED.isdisjoint(target.tags)
        and all(isinstance(each.meta.get("val"), _SIMPLE) for each in node.all_input_nodes)
    )


def _infer(program: Program, node: fx.Node) -> Any:
    target: Any = node.target
    args = fx.node.map_arg(node.args, lambda each: _value(program, each))
    kwargs = fx.node.map_arg(node.kwargs, lambda each: _value(program, each))
    try:
        with on_types(program.fake_mode):
            return type_of(target, args, kwargs, program.fake_mode.shape_env)
    except Exception as error:
        raise VerificationError(
            f"{name_of(node)} = {operator_name(target)}: {str(error).strip() or type(error).__name__}",
            node=name_of(node),
        ) from error


@contextlib.contextmanager
def on_types(fake_mode: FakeTensorMode) -> Iterator[None]:
    """Run operators on types: no gradients, and no guard on a symbolic size."""
    shape_env = fake_mode.shape_env
    # Without the Python dispatcher some operators (a pad) take a symbolic size for its example value.
    with fake_mode, torch.no_grad(), enable_python_dispatcher():
        if shape_env is None:
            yield
            return
        # As at capture: a size is not taken to be 0 or 1, or below a bound, because the sample's is.
        with (
            symbolic_config.patch("backed_size_oblivious", True),  # type: ignore[attr-defined]
            shape_env.ignore_fresh_unbacked_symbols(),
            shape_env.suppress_guards(),
        ):
            yield


def _value(program: Program, node: fx.Node) -> Any:
    if node.op == "get_attr" and str(node.target) in program.branches:
        return branch_module(program.branches, str(node.target))
    return node.meta["val"]


def type_key(node: fx.Node) -> Any:
    """Return what the type of `node`, and a trace of it, depend on: operator, numbers, and the types of its inputs."""
    inputs = node.all_input_nodes
    order = {each: index for index, each in enumerate(inputs)}
    return node.target, _frozen(node.args, order), _frozen(node.kwargs, order), tuple(_type(each) for each in inputs)


def _frozen(value: Any, order: dict[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return "input", order[value]
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(each, order) for each in value)
    if isinstance(value, dict):
        return tuple((name, _frozen(each, order)) for name, each in sorted(value.items()))
    # 1, 1.0 and True are equal, and so are 0.0 and -0.0.
    return type(value), repr(value) if isinstance(value, float) else value


def _type(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return (
            value.dtype,
            value.device,
            value.layout,
            tuple(map(_size, value.shape)),
            tuple(map(_size, value.stride())),
        )
    return type(value), _size(value)


def _size(value: Any) -> Any:
    return value.node.expr if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) else value
