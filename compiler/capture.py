"""Capture a model into a Program with `torch.export`, falling back to `torch.fx.symbolic_trace`.

The model is captured in evaluation mode and left as it was. Dimension 0 of every tensor input is dynamic where the
model allows it; where it does not, the Program's notes say which input and why. In-place operators are made
functional; buffers that `forward` updates become `aten.copy_` nodes at the end of the graph.

Cases not handled: a model that writes to its inputs (the write is dropped, with a note), and data-dependent Python
control flow (use `torch.cond`).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.fx.experimental._config as symbolic_config
from torch.export import Dim, ExportedProgram

from burnish.compiler.errors import CaptureError, InputError
from burnish.compiler.from_export import program_from_export
from burnish.compiler.program import Program

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
        return program_from_export(model, samples=None if inputs is None else as_arguments(inputs))
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"a model is an nn.Module or an ExportedProgram, not {type(model).__name__}")
    if inputs is None:
        raise InputError("capture needs example inputs: pass a tuple of tensors or a dict of them by name")
    args, kwargs = as_arguments(inputs)
    if not any(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves((args, kwargs))):
        raise InputError("the example inputs hold no tensor: pass a tuple of tensors or a dict of them by name")
    _register_container_types()
    with evaluation_mode(model), torch.no_grad(), _quiet():
        exported, notes = _export(model, args, kwargs, dynamic_shapes)
        return program_from_export(exported, notes=notes, samples=(args, kwargs), parameters=_parameters(model))


def as_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    if isinstance(inputs, torch.Tensor):
        raise InputError("inputs is a tensor: pass a tuple, `inputs=(x,)`")
    raise InputError(f"inputs must be a tuple or a dict, not {type(inputs).__name__}")


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, and each back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Export with the widest dynamic shapes that work; return the notes that the narrowing earned."""
    if dynamic_shapes is not None:
        return _export_or_trace(model, args, kwargs, dynamic_shapes), ()
    automatic = torch.utils._pytree.tree_map(
        lambda leaf: {0: Dim.AUTO} if isinstance(leaf, torch.Tensor) and leaf.dim() else None, (args, kwargs)
    )
    shapes = _by_parameter(model, args, automatic)
    try:
        return _export_or_trace(model, args, kwargs, shapes), ()
    except CaptureError as dynamic_error:
        try:
            exported = _export_or_trace(model, args, kwargs, None)
        except CaptureError:
            raise dynamic_error from dynamic_error.__cause__
        reason = str(dynamic_error.__cause__ or dynamic_error).strip().split("\n")[0]
        return exported, (f"no dimension could be made dynamic, sizes are those of the example inputs: {reason}",)


def _by_parameter(model: torch.nn.Module, args: tuple[Any, ...], automatic: tuple[Any, Any]) -> Any:
    # torch.export wants one dict by parameter name, var-positional parameters as one tuple under theirs.
    positional, keyword = automatic
    shapes: dict[str, Any] = {}
    rest = list(positional)
    for parameter in inspect.signature(model.forward).parameters.values():
        if not rest:
            break
        if parameter.kind is parameter.VAR_POSITIONAL:
            shapes[parameter.name], rest = tuple(rest), []
        else:
            shapes[parameter.name] = rest.pop(0)
    names = inspect.signature(model.forward).parameters
    catch_all = next((each.name for each in names.values() if each.kind is each.VAR_KEYWORD), None)
    unknown = {name: value for name, value in keyword.items() if name not in names}
    shapes.update({name: value for name, value in keyword.items() if name in names})
    if catch_all is not None and unknown:
        shapes[catch_all] = unknown
    return shapes


def _export_or_trace(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    with symbolic_config.patch(backed_size_oblivious=True):
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as export_error:
            if isinstance(export_error, InputError):
                raise
            try:
                traced = torch.fx.symbolic_trace(model)
                return torch.export.export(traced, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
            except Exception as trace_error:
                raise CaptureError(_explain(model, export_error, trace_error)) from export_error


def _explain(model: torch.nn.Module, export_error: Exception, trace_error: Exception) -> str:
    place = _place(model, export_error)
    return (
        f"cannot capture {type(model).__name__}{place}\n"
        f"  torch.export: {_first_line(export_error)}\n"
        f"  torch.fx.symbolic_trace: {_first_line(trace_error)}\n"
        "  remedy: rewrite data-dependent Python control flow with torch.cond or torch.where,"
        " and non-tensor code outside forward"
    )


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


def _register_container_types() -> None:
    """Make the caches that transformers returns known to pytree, when transformers is in use at all."""
    if "transformers" in sys.modules:
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            from transformers.integrations.executorch import register_dynamic_cache_export_support

            register_dynamic_cache_export_support()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
