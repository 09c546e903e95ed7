"""New weights for layers: which constants a rule may replace, and what a weight that it computed must satisfy.

Weights are computed in float64 and rounded once. Not handled: half precision, unless the new weight needs no rounding;
a weight that several operators read, of which a changed copy would be a second one in memory.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import operator_name
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.batch_norms import Refusal, read_constant

__all__ = ["WIDE", "described", "in_several_graphs", "own_constant", "rounded", "single_user"]

WIDE = (torch.float32, torch.float64)
"""The dtypes in which rounding a weight anew keeps the contract of 1e-5."""

# In how many graphs of a Program a constant is read; counted once for a pass, since rules only ever lower it.
_GRAPHS: WeakKeyDictionary[Rewriter, Counter[str]] = WeakKeyDictionary()


def own_constant(value: Any, what: str, rewriter: Rewriter) -> torch.Tensor:
    """Return the constant `value` if one operator alone reads it; `what` names it in the reason.

    Raises:
        Refusal: it is computed, updated by a run, or read by several operators.
    """
    found = read_constant(value, what, rewriter)
    if len(value.users) > 1 or in_several_graphs(value, rewriter):
        raise Refusal(f"its {what} is shared with another operator")
    return found


def in_several_graphs(constant: fx.Node, rewriter: Rewriter) -> bool:
    """Tell whether the constant of this node is read in another graph of the Program too."""
    return _graphs(rewriter)[str(constant.target)] > 1


def single_user(node: fx.Node) -> None:
    """Raise Refusal where something else than the pattern may read `node`: several users, or the outputs."""
    if any(user.op == "output" for user in node.users):
        raise Refusal(f"{described(node)} is an output of the graph too")
    if len(node.users) > 1:
        raise Refusal(f"{described(node)} has {len(node.users)} users")


def rounded(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight or bias, computed in float64, in the layer's dtype.

    Raises:
        Refusal: it would not be finite, or so large that sums overflow; it would lose its digits to underflow; or it
            needs rounding in half precision.
    """
    new = value.to(dtype).contiguous()
    if not new.numel():
        return new
    low, high = torch.aminmax(new)
    most, limits = max(-float(low), float(high)), torch.finfo(dtype)
    # NaN and infinity both come out at an end of the range.
    if not bool(torch.stack((low, high)).isfinite().all()):
        raise Refusal("the folded weights would not be finite")
    if dtype in WIDE and most > limits.max**0.5:
        raise Refusal("the folded weights would be so large that sums with them could overflow")
    if dtype not in WIDE and not torch.equal(new.double(), value):
        raise Refusal(f"it computes in {str(dtype).removeprefix('torch.')}, where folded weights would be rounded anew")
    if dtype in WIDE and most < limits.tiny / limits.eps and bool(value.any()):
        raise Refusal("the folded weights would be too small for their dtype")
    return new


def described(node: fx.Node) -> str:
    """Return a node as reasons name it: by its operator, where it is one, and its name."""
    name = f"%{name_of(node)}"
    return f"{operator_name(node.target)} {name}" if node.op == "call_function" else name


def _graphs(rewriter: Rewriter) -> Counter[str]:
    found = _GRAPHS.get(rewriter)
    if found is None:
        graphs = (graph for _, graph in rewriter.program.all_graphs())
        found = _GRAPHS[rewriter] = Counter(
            str(node.target) for graph in graphs for node in graph.find_nodes(op="get_attr") if node.users
        )
    return found
