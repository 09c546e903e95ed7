"""Types of nodes: run the operator on fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.fx.experimental._config as symbolic_config
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode

from burnish.compiler.errors import VerificationError
from burnish.compiler.graphs import name_of
from burnish.compiler.operators import operator_name

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["infer", "on_types"]


def infer(program: Program, node: fx.Node) -> Any:
    """Return the type of an operator node: a FakeTensor, a number or SymInt, or a tuple of these.

    Raises:
        VerificationError: the operator refuses these arguments.
    """
    target: Any = node.target
    args = fx.node.map_arg(node.args, lambda each: _value(program, each))
    kwargs = fx.node.map_arg(node.kwargs, lambda each: _value(program, each))
    try:
        with on_types(program.fake_mode):
            return target(*args, **kwargs)
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
        return fx.GraphModule(torch.nn.Module(), program.branches[str(node.target)])
    return node.meta["val"]
