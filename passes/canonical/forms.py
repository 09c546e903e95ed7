"""Rules that give equivalent elementwise operators, reductions and splits one form.

`relu6`, `relu`, `softmax.int`, `log_softmax.int`, `sub.Tensor`, `constant_pad_nd`, `split_with_sizes`.

Not handled: a number minus a tensor stays `rsub.Scalar`, since no other operator says it alone; `split` and `chunk`
along a dynamic dimension stay; `maximum` with a constant, and `threshold`, are not turned into `relu`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import argument, arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.aliases import drop
from burnish.passes.canonical.types import is_number, same_type, tensor_of

__all__ = ["RULES"]


@rule("aten.hardtanh", "aten.clamp")
def relu6_form(node: fx.Node, rewriter: Rewriter) -> None:
    """hardtanh(x, 0, 6) and clamp(x, 0, 6) are relu6(x)."""
    found = arguments(node)
    low, high = found.get("min_val", found.get("min")), found.get("max_val", found.get("max"))
    if is_number(low, 0) and is_number(high, 6) and _is_float(node) and same_type(node, node.args[0]):
        rewriter.replace(node, "aten.relu6", (node.args[0],), {}, same_type=True)


@rule("aten.clamp", "aten.clamp_min")
def relu_form(node: fx.Node, rewriter: Rewriter) -> None:
    """clamp_min(x, 0) is relu(x)."""
    found = arguments(node)
    if is_number(found["min"], 0) and found.get("max") is None and same_type(node, node.args[0]):
        rewriter.replace(node, "aten.relu", (node.args[0],), {}, same_type=True)


@rule("aten.rsub.Tensor")
def sub_form(node: fx.Node, rewriter: Rewriter) -> None:
    """rsub(x, y) is y - x."""
    found = arguments(node)
    kwargs = {} if is_number(found["alpha"], 1) else {"alpha": found["alpha"]}
    rewriter.replace(node, "aten.sub.Tensor", (found["other"], found["self"]), kwargs, same_type=True)


@rule("aten._softmax", "aten._log_softmax", "aten.softmax.int", "aten.log_softmax.int")
def softmax_form(node: fx.Node, rewriter: Rewriter) -> None:
    """Every softmax is softmax.int(x, dim), with a dtype only where it changes."""
    found = arguments(node)
    source, result = tensor_of(found["self"]), tensor_of(node)
    if source is None or result is None:
        return
    whole = str(node.target).startswith(("aten.softmax", "aten.log_softmax"))
    if whole and (found["dtype"] is None or result.dtype != source.dtype):
        return
    kwargs: dict[str, Any] = {} if result.dtype == source.dtype else {"dtype": result.dtype}
    form = "aten.log_softmax.int" if "log" in str(node.target) else "aten.softmax.int"
    rewriter.replace(node, form, (found["self"], found["dim"]), kwargs, same_type=True)


@rule("aten.pad")
def pad_form(node: fx.Node, rewriter: Rewriter) -> None:
    """pad(x, pad, "constant", value) is constant_pad_nd(x, pad, value)."""
    found = arguments(node)
    if found["mode"] == "constant":
        value = 0 if found["value"] is None else found["value"]
        rewriter.replace(node, "aten.constant_pad_nd", (found["self"], found["pad"], value), {}, same_type=True)


@rule("aten.pad", "aten.constant_pad_nd")
def drop_pad(node: fx.Node, rewriter: Rewriter) -> None:
    """A pad by nothing is nothing."""
    source = node.args[0]
    if isinstance(source, fx.Node) and not any(argument(node, "pad")) and same_type(node, source):
        drop(node, source, rewriter)


@rule("aten.chunk", "aten.split.Tensor", "aten.split.sizes")
def split_form(node: fx.Node, rewriter: Rewriter) -> None:
    """Chunk and split are split_with_sizes, where the sizes are numbers."""
    found = arguments(node)
    dim, parts = found["dim"], node.meta["val"]
    sizes = [part.shape[dim] for part in parts]
    if not all(isinstance(size, int) for size in sizes):
        rewriter.skip(node, f"dimension {dim} is dynamic")
        return
    rewriter.replace(node, "aten.split_with_sizes", (found["self"], sizes, dim), {}, same_type=True)


def _is_float(node: fx.Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


RULES = (relu6_form, relu_form, sub_form, softmax_form, drop_pad, pad_form, split_form)
