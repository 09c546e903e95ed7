"""Models quantized in eager PyTorch: their modules become float ones between pairs of quantize and dequantize.

1. An observed model (`torch.ao.quantization.prepare`, then calibrated) is converted first, as torch would: a copy.
2. Modules of `torch.ao.nn.quantized` and its relatives are read: integers and scales of weights, scale and zero point
   of results. Dynamic linear layers get the pairs that quantize-dynamic writes.
3. What runs between them on quantized tensors is followed while the model is traced: see `quantized_values`.

Results differ from torch's by a step where its kernels, which add in integers, round the other way. Not handled:
graphs of convert_fx, recurrent layers and whatever else is not in the table, refused by name; weights of embeddings,
which come in as floats; `add_scalar`, and `mul_scalar` by negative numbers, whose results stay float; dynamic layers
use all of uint8, where torch may use half of it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from burnish.compiler import quantized_layers as layers
from burnish.compiler.errors import CaptureError

__all__ = ["holds_quantized_modules", "with_pairs"]

_HARMLESS = ("FloatFunctional", "FXFloatFunctional", "Dropout")


def holds_quantized_modules(model: nn.Module) -> bool:
    """Tell whether eager quantization converted some modules of `model`, or prepared them with observers.

    Raises:
        CaptureError: `model` is a graph that was prepared and not converted, or that convert_fx made.
    """
    if isinstance(model, fx.GraphModule) and any(name.startswith("activation_post_process") for name in model._modules):
        raise CaptureError(
            "the model is prepared for quantization but not converted: call convert_pt2e, or convert_fx, first"
        )
    if isinstance(model, fx.GraphModule) and any(
        each.target is torch.quantize_per_tensor for each in model.graph.nodes
    ):
        raise CaptureError(
            "the model is a graph of convert_fx, which calls torch's integer kernels: quantize the float model with"
            " convert_pt2e, or with burnish"
        )
    return any(_is_quantized(each) or _is_observer(each) for each in model.modules())


def with_pairs(model: nn.Module) -> nn.Module:
    """Return `model` with float modules and pairs. Its submodules are replaced in place: the caller puts them back.

    Raises:
        CaptureError: an observer has seen no data, or a module has no float form here; the message names it.
    """
    if any(_is_observer(each) for each in model.modules()):
        model = _converted(model)
    known: dict[nn.Module, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(parent in known for parent in _parents(model, path))
        if _is_quantized(module) and not inside:
            known[module] = _reader(path, module)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in known:
                parent._modules[name] = known[child]
    return known.get(model, model)


# -- which modules ----------------------------------------------------------------------------------------------


def _is_quantized(module: nn.Module) -> bool:
    kind = type(module)
    home = kind.__module__
    return home.startswith("torch.ao.nn.") and ".quantized." in home and kind.__name__ not in _HARMLESS


def _is_observer(module: nn.Module) -> bool:
    if not any(each.__module__.startswith("torch.ao.quantization.") for each in type(module).__mro__):
        return False
    from torch.ao.quantization import FakeQuantizeBase, ObserverBase

    return isinstance(module, (FakeQuantizeBase, ObserverBase))


def _parents(model: nn.Module, path: str) -> list[nn.Module]:
    parts = path.split(".") if path else []
    return [model.get_submodule(".".join(parts[:index])) for index in range(len(parts))]


def _converted(model: nn.Module) -> nn.Module:
    """Convert a copy of an observed model with torch, if every observer of activations has seen data."""
    from torch.ao.quantization import ObserverBase, convert

    for path, module in model.named_modules():
        if isinstance(module, ObserverBase) and "activation_post_process" in path:
            low = getattr(module, "min_val", None)
            if isinstance(low, torch.Tensor) and (low.numel() == 0 or bool(low.isinf().any())):
                raise CaptureError(f"the observer {path!r} has seen no data: run the prepared model on some first")
    try:
        result: nn.Module = convert(copy.deepcopy(model).eval())  # type: ignore[no-untyped-call]
    except Exception as error:
        raise CaptureError(f"torch.ao.quantization.convert refuses the observed model: {error}") from error
    return result


# -- one module each --------------------------------------------------------------------------------------------


def _reader(path: str, module: nn.Module) -> nn.Module:
    make = _table().get(type(module))
    if make is None:
        kind = f"{type(module).__module__}.{type(module).__name__}"
        raise CaptureError(
            f"{path or 'the model'} is a {kind}, of which burnish cannot read the numbers: leave it float when"
            " quantizing with torch, or capture the float model and quantize with burnish"
        )
    return make(module)


@functools.cache
def _table() -> dict[type[nn.Module], Callable[[Any], nn.Module]]:
    """Return by class how a module of torch is read."""
    import torch.ao.nn.intrinsic.quantized as fused
    import torch.ao.nn.intrinsic.quantized.dynamic as fused_dynamic
    import torch.ao.nn.quantized as plain
    import torch.ao.nn.quantized.dynamic as dynamic

    relu, linear = functional.relu, functional.linear
    each: type[nn.Module]
    table: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        plain.Quantize: layers.Quantize,
        plain.DeQuantize: lambda module: layers.DeQuantize(),
        plain.QFunctional: layers.Functional,
        plain.ReLU6: lambda module: nn.ReLU6(),
        plain.PReLU: layers.PReLU,
        plain.Embedding: layers.embedding,
        plain.Linear: lambda module: layers.Layer(module, linear),
        fused.LinearReLU: lambda module: layers.Layer(module, linear, relu),
        fused.LinearLeakyReLU: lambda module: layers.Layer(module, linear, _leaky(module.negative_slope)),
        fused.LinearTanh: lambda module: layers.Layer(module, linear, torch.tanh),
        dynamic.Linear: layers.DynamicLinear,
        fused_dynamic.LinearReLU: lambda module: layers.DynamicLinear(module, relu),
    }
    for each in (plain.Conv1d, plain.Conv2d, plain.Conv3d, fused.ConvAdd2d):
        table[each] = lambda module: layers.Layer(module, layers.convolution(module))
    for each in (fused.ConvReLU1d, fused.ConvReLU2d, fused.ConvReLU3d, fused.ConvAddReLU2d):
        table[each] = lambda module: layers.Layer(module, layers.convolution(module), relu)
    for each in (plain.ConvTranspose1d, plain.ConvTranspose2d, plain.ConvTranspose3d):
        table[each] = lambda module: layers.Layer(module, layers.transposed_convolution(module))
    for each in (plain.BatchNorm2d, plain.BatchNorm3d):
        table[each] = lambda module: layers.Rounded(layers.batch_norm(module), module)
    for each in (fused.BNReLU2d, fused.BNReLU3d):
        table[each] = lambda module: layers.Rounded(nn.Sequential(layers.batch_norm(module), nn.ReLU()), module)
    bases = ("ELU", "Hardswish", "LeakyReLU", "GroupNorm", "LayerNorm")
    for name in (*bases, "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"):
        table[getattr(plain, name)] = functools.partial(_derived, getattr(nn, name))
    return table


def _derived(base: type[nn.Module], module: nn.Module) -> nn.Module:
    return layers.Rounded(layers.float_base(base, module), module)


def _leaky(slope: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return functools.partial(functional.leaky_relu, negative_slope=slope)
