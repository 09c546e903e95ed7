"""Capture a model into a Program with `torch.export`, falling back to `torch.fx.symbolic_trace`.

The model is captured in evaluation mode and left as it was. Dimension 0 of every tensor input is dynamic where the
model allows it; where it does not, the Program's notes say which input and why. In-place operators are made
functional; buffers that `forward` updates become `aten.copy_` nodes at the end of the graph.

Cases not handled: a model that writes to its inputs (the write is dropped, with a note), and data-dependent Python
control flow (use `torch.cond`).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx.experimental._config as symbolic_config
from torch.export import ExportedProgram

from burnish.compiler.containers import register_containers, register_known_containers
from burnish.compiler.dynamic_shapes import export_widest, flatten_signature
from burnish.compiler.errors import CaptureError, InputError
from burnish.compiler.from_export import program_from_export
from burnish.compiler.model_state import evaluation_mode, untouched
from burnish.compiler.program import Program
from burnish.compiler.quantized_modules import holds_quantized_modules, with_pairs
from burnish.compiler.quantized_values import QuantizedValues
from burnish.compiler.quiet import quiet
from burnish.compiler.special_sizes import without_harmless_conditions
from burnish.compiler.types_text import format_type

__all__ = ["as_arguments", "capture", "evaluation_mode"]

Inputs = tuple[Any, ...] | Mapping[str, Any]


def capture(
    model: torch.nn.Module | ExportedProgram,
    inputs: Inputs | None = None,
    dynamic_shapes: Any = None,
) -> Program:
    """Capture `model` into a Program.

    Args:
        model: a module (captured in evaluation mode, left untouched) or an ExportedProgram.
        inputs: example inputs, a tuple (positional) or a dict (by name); not needed for an ExportedProgram.
        dynamic_shapes: as in `torch.export.export`; by default dimension 0 of every tensor is dynamic.

    Raises:
        InputError: no usable inputs.
        CaptureError: neither torch.export nor symbolic tracing can capture the model; names module and source line.
    """
    if isinstance(model, ExportedProgram):
        with quiet():
            return program_from_export(model, samples=None if inputs is None else as_arguments(inputs))
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"a model is an nn.Module or an ExportedProgram, not {type(model).__name__}")
    if inputs is None:
        raise InputError("capture needs example inputs: pass a tuple of tensors or a dict of them by name")
    args, kwargs = as_arguments(inputs)
    if not any(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves((args, kwargs))):
        raise InputError("the example inputs hold no tensor: pass a tuple of tensors or a dict of them by name")
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the example inputs do not fit {type(model).__name__}.forward: {error}") from error
    register_known_containers()
    register_containers((args, kwargs))
    args, kwargs = _distinct(model, args, kwargs)
    parameters = _parameters(model)
    with evaluation_mode(model), untouched(model), torch.no_grad(), quiet():
        notes: tuple[str, ...] = ()
        following: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if holds_quantized_modules(model):
            model, following = with_pairs(model), QuantizedValues()
        if dynamic_shapes is not None:
            with following:
                exported = _export(model, args, kwargs, dynamic_shapes)
        else:
            flatten_signature(model, args, kwargs)
            with following:
                exported, notes = export_widest(
                    lambda shapes: _export(model, args, kwargs, shapes), model, args, kwargs
                )
        program = program_from_export(exported, notes=notes, samples=(args, kwargs), parameters=parameters)
        program.conditions = without_harmless_conditions(program, lambda args, kwargs: _run(model, args, kwargs))
        return program


def as_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    if isinstance(inputs, torch.Tensor):
        raise InputError("inputs is a tensor: pass a tuple, `inputs=(x,)`")
    raise InputError(f"inputs must be a tuple or a dict, not {type(inputs).__name__}")


def _distinct(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs with copies of tensors that stand there twice, or are the model's own.

    torch.export would take such a tensor for one value: the graph would read the last input that holds it everywhere.
    """
    leaves, structure = torch.utils._pytree.tree_flatten((args, kwargs))
    tensors = [each for each in leaves if isinstance(each, torch.Tensor)]
    seen = {id(each) for each in (*model.parameters(), *model.buffers())}
    if len({id(each) for each in tensors} - seen) == len(tensors):
        return args, kwargs
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            leaves[index] = leaf.detach().clone() if id(leaf) in seen else leaf
            seen.add(id(leaf))
    args, kwargs = torch.utils._pytree.tree_unflatten(leaves, structure)
    return args, kwargs


def _export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """Export `model`; where torch.export refuses, export what symbolic tracing makes of it."""
    with symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        try:
            try:
                return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
            except RuntimeError as error:
                if "not a known type" not in str(error) or not _register_results(model, args, kwargs):
                    raise
                return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as export_error:
            try:
                traced = torch.fx.symbolic_trace(model)
                return torch.export.export(traced, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
            except Exception as trace_error:
                raise CaptureError(_explain(model, args, kwargs, export_error, trace_error)) from export_error


def _register_results(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Run the model once to see which classes it returns."""
    return register_containers(_run(model, args, kwargs))


def _run(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the model on copies of its buffers and its inputs, which it may write to."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    return torch.func.functional_call(model, buffers, *copy.deepcopy((args, kwargs)))


def _explain(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    export_error: Exception,
    trace_error: Exception,
) -> str:
    try:
        with torch.no_grad():
            _run(model, args, kwargs)
    except Exception as error:
        given = ", ".join([*map(_described, args), *(f"{name}: {_described(each)}" for name, each in kwargs.items())])
        return (
            f"{type(model).__name__} does not run on these inputs, ({given}){_place(model, error)}\n"
            f"  PyTorch: {_first_line(error)}\n"
            f"  remedy: inputs that forward{inspect.signature(model.forward)} takes"
        )
    place = _place(model, export_error)
    words = str(export_error)
    # By its name: importing its module takes long, and only this needs it.
    if type(export_error).__name__ == "UserError" and ("dynamic_shapes" in words or "Constraints violated" in words):
        found = [line.strip().removeprefix("- ") for line in words.splitlines() if line.startswith("  - ")]
        return (
            f"cannot capture {type(model).__name__} with these dynamic_shapes\n"
            f"  torch.export: {'; '.join(found) or _first_line(export_error)}\n"
            "  remedy: by input, {dimension: torch.export.Dim.DYNAMIC}, or Dim(name, max=...) where sizes are bounded"
        )
    return (
        f"cannot capture {type(model).__name__}{place}\n"
        f"  torch.export: {_first_line(export_error)}\n"
        f"  torch.fx.symbolic_trace: {_first_line(trace_error)}\n"
        "  remedy: rewrite data-dependent Python control flow with torch.cond or torch.where,"
        " and non-tensor code outside forward"
    )


def _described(value: Any) -> str:
    return format_type(value) if isinstance(value, torch.Tensor) else type(value).__name__


def _place(model: torch.nn.Module, error: BaseException) -> str:
    """Find the innermost frame that runs the forward of a user's module, and name the module and the line."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    current: BaseException | None = error
    while current is not None and not found:
        trace = current.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            owner = frame.f_locals.get("self")
            if id(owner) in names and "/torch/" not in frame.f_code.co_filename:
                path = names[id(owner)] or "the root module"
                found = f": in {path} ({type(owner).__name__}), {frame.f_code.co_filename}:{trace.tb_lineno}"
            trace = trace.tb_next
        current = current.__cause__ or current.__context__
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _parameters(model: torch.nn.Module) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(each.name for each in inspect.signature(model.forward).parameters.values() if each.kind in kinds)
