"""The widest dynamic shapes that a model allows: dimension 0 of every tensor input, and what narrows it.

Cases not handled: dimensions other than 0, which are the caller's to name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import Dim, ExportedProgram

from burnish.compiler.errors import CaptureError

__all__ = ["export_widest", "flatten_signature"]

Export = Callable[[Any], ExportedProgram]
# Each trial is an export.
_MOST_TRIALS = 4


def export_widest(
    export: Export, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Call `export` with dynamic shapes, and with fewer of them where it refuses; return the notes that this earned.

    Raises:
        CaptureError: `export` refuses static shapes too.
    """
    try:
        exported = export(_shapes(model, args, kwargs))
    except CaptureError as error:
        dynamic_error = error
    else:
        return _with_one_batch(exported, export, model, args, kwargs)
    reason = str(dynamic_error.__cause__ or dynamic_error).strip().split("\n")[0]
    try:
        static = export(None)
    except CaptureError:
        raise dynamic_error from dynamic_error.__cause__
    # It is the sizes, then. Often one input is to blame, and the others may stay dynamic.
    candidates = [*range(len(args)), *kwargs]
    for each in candidates if 1 < len(candidates) <= _MOST_TRIALS else ():
        try:
            exported = export(_shapes(model, args, kwargs, each))
        except CaptureError:
            continue
        name = repr(each) if isinstance(each, str) else f"{each} (by position)"
        return exported, (f"dimension 0 of input {name} could not be made dynamic: {reason}",)
    return static, (f"no dimension could be made dynamic, sizes are those of the example inputs: {reason}",)


def flatten_signature(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give `model.forward` a parameter for each argument, if it takes `*args` or `**kwargs`: torch.export loses track.

    It is an attribute of the instance afterwards, for `model_state.untouched` to remove.
    """
    known = list(inspect.signature(model.forward).parameters.values())
    variable = [each for each in known if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if not variable:
        return
    forward = model.forward
    names = [each.name for each in known if each not in variable and each.name not in kwargs][: len(args)]
    names += [f"{variable[0].name}_{index}" for index in range(len(args) - len(names))]

    def flat(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    flat.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in (*names, *kwargs)])  # type: ignore[attr-defined]
    vars(model)["forward"] = flat


def _with_one_batch(
    exported: ExportedProgram, export: Export, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Export again with one batch size for all inputs, if sizes came out as ratios of the inputs' own batch sizes.

    `k.view(batch_of_x, -1, heads, width)`, k made from y, gives `20*batch_of_y//batch_of_x`: nobody means that.
    """
    sizes = {
        leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()
    }
    if len(sizes) > 1 or not _has_ratio(exported):
        return exported, ()
    try:
        return export(_shapes(model, args, kwargs, dim=Dim("batch", min=1))), ("all inputs must have one batch size",)
    except CaptureError:
        return exported, ()


def _has_ratio(exported: ExportedProgram) -> bool:
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            expression = size.node.expr if isinstance(size, torch.SymInt) else None
            if expression is not None and len(expression.free_symbols) > 1 and not expression.is_polynomial():
                return True
    return False


def _shapes(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    static: int | str | None = None,
    dim: Any = Dim.AUTO,
) -> dict[str, Any]:
    """Return dimension 0 of every tensor as `dim`, by parameter name; of the parameter `static` as a fixed number."""
    names = inspect.signature(model.forward).parameters
    shapes = {
        name: _automatic(value, None if index == static else dim)
        for index, (name, value) in enumerate(zip(names, args, strict=False))
    }
    return shapes | {name: _automatic(value, None if name == static else dim) for name, value in kwargs.items()}


def _automatic(value: Any, dim: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {0: dim} if value.dim() and dim is not None else None
    if type(value) is dict:
        return {key: _automatic(part, dim) for key, part in value.items()}
    kind = pytree._get_node_type(value)
    if kind not in pytree.SUPPORTED_NODES:
        return None
    # A registered class is described by the list of its parts.
    parts, _ = pytree.SUPPORTED_NODES[kind].flatten_fn(value)
    made = [_automatic(part, dim) for part in parts]
    return tuple(made) if type(value) is tuple else made
