"""Which integer kernel of libtorch computes a quantized result, from the operator that computes it in floats.

Kernels take and give tensors of dtype quint8, which carry their scale and zero point. Layers have their weights packed.

Not handled: transposed convolutions, weights with zero points, sums and products that
broadcast both operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from burnish.backends.torchscript.integer_padding import Padding, own_padding
from burnish.compiler.cost_numbers import shape_of
from burnish.compiler.operators import arguments, find_operator, operator_name, schema_of

__all__ = ["Kernel", "Numbers", "Packer", "kernel_for", "limits_of", "only_user"]

Numbers = tuple[float, int]
"""Scale and zero point."""
Packer = Callable[[fx.Node, str, tuple[Any, ...], "Padding | None"], "fx.Node | None"]
"""Returns the packed weight and bias of a layer for the prepacking operator and its arguments; None: it cannot."""

_CONVOLUTIONS = {"aten.conv1d": 1, "aten.conv2d": 2, "aten.conv3d": 3}
_POOLS = ("aten.avg_pool2d", "aten.adaptive_avg_pool2d")
_LIMITS = {"aten.clamp": ("min", "max"), "aten.hardtanh": ("min_val", "max_val")}
_UNARY = ("aten.sigmoid", "aten.hardswish", "aten.leaky_relu")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A call.

    Attributes:
        target: the operator.
        args: what it reads.
        limited: its result has no negative values: it applies a relu.
    """

    target: Any
    args: tuple[Any, ...]
    limited: bool = False


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the node that alone reads `node`."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def limits_of(node: fx.Node) -> tuple[fx.Node, float | None, float | None] | None:
    """Return operand, minimum and maximum of an operator that does nothing but limit its operand."""
    name = operator_name(node.target) if node.op == "call_function" else ""
    if name == "aten.relu":
        return arguments(node)["self"], 0.0, None
    if name == "aten.relu6":
        return arguments(node)["self"], 0.0, 6.0
    if name in _LIMITS:
        found = arguments(node)
        low, high = (found[each] for each in _LIMITS[name])
        if all(each is None or isinstance(each, (int, float)) for each in (low, high)):
            return found["self"], low, high
    return None


def kernel_for(
    node: fx.Node,
    numbers: Numbers,
    relu: bool,
    integers: Callable[[Any], tuple[fx.Node, Numbers] | None],
    packed: Packer,
) -> Kernel | None:
    """Return the kernel that gives the result of `node` quantized; None where there is none.

    Args:
        node: computes in floats.
        numbers: of the result.
        relu: whether a relu follows; the kernel applies it if it can.
        integers: gives the quantized form of an operand, and its numbers.
        packed: gives the packed form of a layer's weight.
    """
    name = operator_name(node.target)
    found = arguments(node)
    layer = _layer(name, found)
    if layer is not None:
        kind, geometry, padding = layer
        operand = integers(padding.input if padding is not None else found["input"])
        held = packed(node, f"quantized.{kind}_prepack", geometry, padding) if operand is not None else None
        if operand is None or held is None:
            return None
        # Convolutions have an older overload too, that is given the geometry again.
        overload = ".new" if kind in ("conv2d", "conv3d") else ""
        target = find_operator(f"quantized.{kind}{'_relu' if relu else ''}{overload}")
        return Kernel(target, (operand[0], held, *numbers), relu)
    if name in ("aten.add.Tensor", "aten.mul.Tensor"):
        return _arithmetic(node, found, numbers, relu, integers)
    if name == "aten.cat":
        parts = [integers(each) for each in found["tensors"]]
        given = [each[0] for each in parts if each is not None]
        if len(given) != len(parts) or len({each.meta["val"].dim() for each in given}) != 1:
            return None
        # The kernel knows no negative dimensions.
        dim = found["dim"] % given[0].meta["val"].dim()
        return Kernel(find_operator("quantized.cat"), (given, dim, *numbers))
    operand = integers(found.get("self")) if name in (*_UNARY, *_POOLS) else None
    if operand is None:
        return None
    if name in _POOLS:
        # The kernel of a pool keeps the numbers of its operand.
        schema = schema_of(node.target)
        rest = [found[each] for each in schema.names[1:]] if schema is not None else []
        return Kernel(node.target, (operand[0], *rest)) if operand[1] == numbers else None
    slope = (found["negative_slope"], False) if name == "aten.leaky_relu" else ()
    return Kernel(find_operator(name.replace("aten", "quantized")), (operand[0], *slope, *numbers))


def _layer(name: str, found: dict[str, Any]) -> tuple[str, tuple[Any, ...], Padding | None] | None:
    """Return which layer it is, the arguments of its prepacking other than weight and bias, and its padding."""
    if name == "aten.linear":
        return ("linear", (), None) if found["input"].meta["val"].dim() > 1 else None
    dims = _CONVOLUTIONS.get(name)
    if name == "aten.convolution" and not found["transposed"]:
        dims = len(found["stride"])
    if dims is None or found["input"].meta["val"].dim() != dims + 2:
        return None
    stride, padding, dilation = (_each_dim(found[each], dims) for each in ("stride", "padding", "dilation"))
    own = own_padding(found, stride, padding, dilation)
    return f"conv{dims}d", (stride, own.padding, dilation, found["groups"]), own


def _each_dim(value: Any, dims: int) -> list[int]:
    return list(value) * dims if len(value) == 1 else list(value)


def _arithmetic(
    node: fx.Node,
    found: dict[str, Any],
    numbers: Numbers,
    relu: bool,
    integers: Callable[[Any], tuple[fx.Node, Numbers] | None],
) -> Kernel | None:
    values = found["self"], found["other"]
    if found.get("alpha", 1) != 1 or not all(isinstance(each, fx.Node) for each in values):
        return None
    left, right = map(integers, values)
    if left is None or right is None:
        return None
    # The kernels spread one operand over the other, never both.
    if shape_of(node.meta["val"]) not in [shape_of(each.meta["val"]) for each in values]:
        return None
    kind = operator_name(node.target).split(".")[1]
    target = find_operator(f"quantized.{kind}{'_relu' if relu else ''}")
    return Kernel(target, (left[0], right[0], *numbers), relu)
