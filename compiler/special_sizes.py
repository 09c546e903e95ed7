"""Which excluded sizes do no harm after all.

Models ask in Python whether a batch size is 1 (transformers, before it expands position ids) and do the same thing in
another way where it is. The guard `B != 1` that this leaves would refuse the commonest size of all. It excludes a
single size, so the question can be settled by running the model and the Program at just that size.

Cases not handled: conditions that exclude more than one size, or more than one symbol: they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch

from burnish.compiler import interpreter, structure
from burnish.compiler.conditions import Condition
from burnish.compiler.numerics import worst_drift
from burnish.compiler.program import Program
from burnish.compiler.sizes import expression

__all__ = ["without_harmless_conditions"]

_SAME = 1e-5


def without_harmless_conditions(
    program: Program, model: Callable[[tuple[Any, ...], dict[str, Any]], Any]
) -> tuple[Condition, ...]:
    """Return the conditions of `program`, less those that exclude one size at which it agrees with `model`.

    Args:
        program: captured from `model`, with its sample inputs.
        model: runs the model on (args, kwargs), on copies of its state, which the Program shares.
    """
    return tuple(each for each in program.conditions if not _is_harmless(each, program, model))


def _is_harmless(
    condition: Condition, program: Program, model: Callable[[tuple[Any, ...], dict[str, Any]], Any]
) -> bool:
    excluded = condition.excluded_size()
    samples = _resized(program, *excluded) if excluded is not None and excluded[1] >= 1 else None
    if samples is None:
        return False
    try:
        expected = model(*structure.unflatten(program.signature.inputs, samples))
        actual, _ = interpreter.run(program, samples)
    except Exception:  # whatever a model raises at a size that it is not made for
        return False
    leaves = [torch.utils._pytree.tree_leaves(each) for each in (actual, expected)]
    return len(leaves[0]) == len(leaves[1]) and worst_drift(*leaves) <= _SAME


def _resized(program: Program, symbol: sympy.Symbol, size: int) -> Mapping[str, Any] | None:
    """Return the sample inputs with `symbol` at `size`; None where an input's size is not the symbol itself."""
    found = dict(program.samples)
    for graph in program.graphs.values():
        for node in graph.find_nodes(op="placeholder"):
            value, name = node.meta.get("val"), str(node.target)
            for dimension, each in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                written = expression(each)
                if isinstance(written, int) or symbol not in written.free_symbols:
                    continue
                if written != symbol or name not in found:
                    return None
                index = torch.arange(size) % found[name].shape[dimension]
                found[name] = found[name].index_select(dimension, index)
    return found
