"""Leave a model as it was: mode, weights, buffers, attributes, hooks and the random state.

Forward may cache tensors in attributes, and under `torch.export` these are fake ones: a later call would fail.

Cases not handled: attributes of objects that are not modules.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

__all__ = ["evaluation_mode", "untouched"]


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, and each back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        # An exported model has one mode, and an `eval` of its own that raises.
        if not isinstance(model, fx.GraphModule) or "eval" not in vars(model):
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Run the body, then put back every attribute of every submodule, and the random state.

    Weights made under `torch.inference_mode` are replaced by ordinary copies meanwhile, as autograd refuses them.
    """
    before = [(vars(module), dict(vars(module)), _contents(vars(module))) for module in model.modules()]
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            for module in model.modules():
                _replace_inference_tensors(module)
            yield
    finally:
        for attributes, values, contents in before:
            attributes.clear()
            attributes.update(values)
            for name, items in contents.items():
                _refill(attributes[name], items)


def _contents(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copy the lists and dicts among the attributes (buffers, parameters and hooks are dicts), one level deep."""
    return {name: value.copy() for name, value in attributes.items() if isinstance(value, (list, dict))}


def _refill(container: Any, items: Any) -> None:
    container.clear()
    container.update(items) if isinstance(container, dict) else container.extend(items)


def _replace_inference_tensors(module: torch.nn.Module) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_inference():
            module._parameters[name] = torch.nn.Parameter(parameter.clone(), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_inference():
            module._buffers[name] = buffer.clone()
