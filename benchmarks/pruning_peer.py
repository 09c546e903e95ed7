"""What Torch-Pruning makes of a module, with what its user has to say and burnish finds by itself.

As in its examples it is told which layers make the outputs, and how many heads the projections of an attention have, of
which whole ones go. Where the module does not run then, the numbers and sizes of heads that modules hold in attributes
are set to what is left. Caches of keys and values are switched off: they would have to keep their size.

Not handled: what takes a function of its own for one architecture, as Swin's merging of patches in its examples.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

__all__ = ["call", "pruned_module"]

_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_HEAD_SIZES = ("attention_head_size", "head_dim")
_SIZES_OF_ALL_HEADS = ("all_head_size", "embed_dim", "inner_dim")
_PROJECTION = re.compile(r"(.*_)?(q|k|v|query|key|value|qkv|query_key_value|wqkv)(_proj|_lin)?", re.IGNORECASE)
_KEYS_OR_VALUES = re.compile(r"(.*_)?(k|v|key|value)(_proj|_lin)?")

_Attentions = dict[nn.Module, dict[nn.Module, int]]
"""For every module that projects to heads, its projections, with how many heads each has."""


def pruned_module(
    model: nn.Module, examples: list[Any], ratio: float, round_to: int | None = None
) -> tuple[float, str]:
    """Prune `model` in place.

    Args:
        model: what to prune.
        examples: inputs of several batch sizes, each a tuple or a dict; the first ones are for finding dependencies.
        ratio: the part of every layer and of the heads to remove.
        round_to: what stays of a layer is a multiple of this.

    Returns:
        The part of the parameters that is gone, and why the model does not run with all examples and outputs of the
        same shapes; "" where it does.
    """
    import torch_pruning

    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False
    shapes, count = [_shapes(call(model, each)) for each in examples], _parameter_count(model)
    attentions = _attentions(model)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        examples[0],
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        round_to=round_to,
        ignored_layers=_last_layers(model, examples[0]),
        output_transform=_differentiable,
        in_channel_groups={},
        out_channel_groups={},
        num_heads={layer: heads for layers in attentions.values() for layer, heads in layers.items()},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
    )
    pruner.step()
    reason = _why_not_running(model, examples, shapes)
    if reason and attentions:
        _set_heads(attentions, pruner.num_heads)
        reason = reason if _why_not_running(model, examples, shapes) else ""
    return 1 - _parameter_count(model) / max(count, 1), reason


def call(function: Any, inputs: Any) -> Any:
    """Call a model with a tuple, or with a dict by parameter name."""
    with torch.no_grad():
        return function(**inputs) if isinstance(inputs, dict) else function(*inputs)


def _why_not_running(model: nn.Module, examples: list[Any], shapes: list[Any]) -> str:
    try:
        found = [_shapes(call(model, each)) for each in examples]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if found == shapes else "outputs have other shapes"


def _shapes(results: Any) -> list[torch.Size]:
    return [each.shape for each in pytree.tree_leaves(results) if isinstance(each, torch.Tensor)]


def _parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _differentiable(results: Any) -> list[torch.Tensor]:
    return [each for each in pytree.tree_leaves(results) if isinstance(each, torch.Tensor) and each.grad_fn is not None]


def _last_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """Return the layers, of kinds that Torch-Pruning knows, behind which none follows on the way to an output."""
    import torch_pruning

    known = tuple(torch_pruning.ops.type2class(kind) for kind in torch_pruning.DependencyGraph().REGISTERED_PRUNERS)
    made: dict[Any, nn.Module] = {}

    def remember(module: nn.Module, inputs: Any, results: Any) -> None:
        made.update({each.grad_fn: module for each in _differentiable(results)})

    hooks = [module.register_forward_hook(remember) for module in model.modules() if isinstance(module, known)]
    results = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    for hook in hooks:
        hook.remove()
    waiting: list[Any] = [each.grad_fn for each in _differentiable(results)]
    found, seen = [], set[Any]()
    while waiting:
        function = waiting.pop()
        if function in made:
            found.append(made[function])
        elif function is not None and function not in seen:
            seen.add(function)
            waiting += [each for each, _ in function.next_functions]
    return found


def _attentions(model: nn.Module) -> _Attentions:
    found: _Attentions = {}
    for module in model.modules():
        children = [(name, each) for name, each in module.named_children() if isinstance(each, nn.Linear)]
        layers = {name: each for name, each in children if _PROJECTION.fullmatch(name)}
        places = [module, getattr(module, "config", None), getattr(model, "config", None)]
        heads = _first_number(places, _HEADS)
        if layers and heads:
            few = _first_number(places, ("num_key_value_heads",)) or heads
            found[module] = {each: few if _KEYS_OR_VALUES.fullmatch(name) else heads for name, each in layers.items()}
    return found


def _first_number(places: list[Any], names: tuple[str, ...]) -> int | None:
    numbers = (getattr(place, name, None) for place in places for name in names)
    return next((number for number in numbers if isinstance(number, int)), None)


def _set_heads(attentions: _Attentions, heads: dict[nn.Module, int]) -> None:
    for module, layers in attentions.items():
        layer: Any = next(iter(layers))
        left = max(heads[each] for each in layers)
        sizes = {_HEADS: left, _HEAD_SIZES: layer.out_features // left, _SIZES_OF_ALL_HEADS: layer.out_features}
        for names, size in sizes.items():
            for name in names:
                if isinstance(vars(module).get(name), int):
                    setattr(module, name, size)
