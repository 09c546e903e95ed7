"""Quantized parts of a Program on the integer kernels of libtorch: operators of the namespaces `quantized` and `aten`.

1. A value between quantize and dequantize becomes a tensor of dtype quint8, which carries its scale and zero point.
2. What computes a quantized result from quantized operands becomes one kernel, with the relu or clamp behind it.
3. A linear layer on a quantized input becomes a kernel with float32 result, also where the range is taken at run time.
4. Reshapes, slices and pools by maximum between a dequantization and a kernel move to the quantized tensor.
5. Weights and biases are packed. Other constants in integers are dequantized here, once.

Not handled, and computed in plain arithmetic or floats: int8 activations, uint8 ones of a narrower range, weights with
zero points, linear layers on vectors, convolutions with float result, layers whose float result has another reader.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from burnish.backends.torchscript.fused import has_expression
from burnish.backends.torchscript.integer_kernels import Numbers, kernel_for, limits_of, only_user
from burnish.backends.torchscript.integer_padding import Padding
from burnish.compiler.fused import is_fused
from burnish.compiler.graphs import NameTable, calls, name_of
from burnish.compiler.operators import arguments, find_operator, is_mutating, is_random, operator_name, schema_of
from burnish.compiler.program import Program

__all__ = ["IntegerProgram", "lower_integers", "stays_fused"]

_LIBRARY = "quantized_decomposed."
_QUANTIZE = f"{_LIBRARY}quantize_per_tensor"
_DEQUANTIZE = f"{_LIBRARY}dequantize_per_tensor"
_BY_CHANNEL = f"{_LIBRARY}dequantize_per_channel"
_LINEAR = "quantized.linear_with_input_q_dq_qweight_dq_output_fp32"
_FULL = (0, 255, torch.uint8)
# Take and give quint8 tensors with the same numbers.
_REARRANGEMENTS = frozenset(
    f"aten.{name}"
    for name in (
        *("reshape", "view", "flatten.using_ints", "permute", "transpose.int", "squeeze", "squeeze.dim", "unsqueeze"),
        *("slice.Tensor", "select.int", "split.Tensor", "split_with_sizes", "chunk", "contiguous", "clone", "expand"),
        *("max_pool2d", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
    )
)
# Of all engines these alone have layers with quantized input and float result.
_ENGINES = ("x86", "fbgemm")


@dataclass(slots=True)
class IntegerProgram:
    """What `lower_integers` returns.

    Attributes:
        program: the Program; its types are those of the float and integer tensors that kernels stand for.
        packed: packed weights of layers by the name of the constant, which is none of the Program's own.
    """

    program: Program
    packed: dict[str, Any] = field(default_factory=dict)


def stays_fused(node: fx.Node) -> bool:
    """Tell whether a fused operator is written as it is; layers with quantized weights come apart."""
    weight = arguments(node).get("weight") if is_fused(node.target) else None
    return has_expression(node) and not (isinstance(weight, fx.Node) and _name(weight).startswith(_LIBRARY))


def lower_integers(program: Program) -> IntegerProgram:
    """Return `program` with its pairs turned into quantized tensors, and what computes between them into kernels.

    Args:
        program: without fused operators other than those of `stays_fused`.
    """
    if not any(_name(node).startswith(_LIBRARY) for _, graph in program.all_graphs() for node in calls(graph)):
        return IntegerProgram(program)
    result = IntegerProgram(program.copy())
    taken = set(program.constants)
    with warnings.catch_warnings():
        # PyTorch deprecates tensors of these dtypes, and says so once a process.
        warnings.simplefilter("ignore", UserWarning)
        for _, graph in result.program.all_graphs():
            _Lowering(result, graph, taken).run()
    return result


class _Lowering:
    """The lowering of one graph."""

    def __init__(self, result: IntegerProgram, graph: fx.Graph, taken: set[str]) -> None:
        self.program, self.packed = result.program, result.packed
        self.graph = graph
        self.taken = taken
        self.table = NameTable(graph)
        self.mutable = self.program.mutable_constants()
        # The quantized form of what quantize nodes give, and of dequantized values and what they are rearranged to.
        self.made: dict[fx.Node, fx.Node] = {}
        # What a kernel computes together with the quantization of its result.
        self.done: set[fx.Node] = set()

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if _numbers(node, _QUANTIZE) is not None:
                self._kernel(node)
        for node in list(self.graph.nodes):
            if _name(node) == "aten.linear" and node not in self.done:
                self._linear(node)
        # Backwards, so that what only floats were made for goes, and what is left is read.
        for node in reversed(list(self.graph.nodes)):
            if not node.users:
                if node.op == "get_attr" or _is_pure(node):
                    self.graph.erase_node(node)
            elif _is_pair(node):
                self._replace(node, self._add("aten.dequantize.self", (self._quantized(node.args[0]),), node, node))
            elif _numbers(node, _QUANTIZE) is not None:
                self._replace(node, self._add("aten.int_repr", (self._quantized(node),), node, node))
            elif (value := self._dequantized(node)) is not None:
                name = self._constant_name(name_of(node))
                self.program.constants[name] = value
                self._replace(node, self._holder(name, node))

    def _kernel(self, node: fx.Node) -> None:
        """Compute what `node` quantizes by a kernel, if there is one."""
        numbers = _numbers(node, _QUANTIZE)
        assert numbers is not None
        value: fx.Node = arguments(node)["input"]
        limits: list[tuple[float | None, float | None]] = []
        while only_user(value) is not None and (limit := limits_of(value)) is not None:
            value = limit[0]
            limits.append(limit[1:])
        if value.op != "call_function" or only_user(value) is None:
            return
        relu = bool(limits) and limits[-1][0] == 0.0
        kernel = kernel_for(value, numbers, relu, self._integers, self._pack)
        if kernel is None:
            return
        made = self._add(kernel.target, kernel.args, node, value)
        if kernel.limited:
            limits[-1] = None, limits[-1][1]
        for low, high in reversed(limits):
            low, high = _effective(low, high, numbers)
            if low is not None or high is not None:
                made = self._add("aten.clamp", (made, low, high), node, node)
        self.made[node] = made
        self.done.add(value)

    def _linear(self, node: fx.Node) -> None:
        """Compute a linear layer whose result stays float on its quantized input."""
        if torch.backends.quantized.engine not in _ENGINES:
            return
        value = arguments(node)["input"]
        if value.meta["val"].dim() < 2:
            return
        source, numbers = value, None
        known = self._origin(value)
        if known is not None:
            # The kernel quantizes its input itself.
            numbers = _numbers(known, _QUANTIZE)
            if _is_pair(value) and known not in self.made:
                source = arguments(known)["input"]
        elif (source := _at_run_time(value)) is None:
            return
        held = self._pack(node, "quantized.linear_prepack")
        if held is None:
            return
        if numbers is not None:
            made = self._add(_LINEAR, (source, *numbers, held), node, node)
        else:
            made = self._add("quantized.linear_dynamic", (source, held), node, node)
        self._replace(node, made)

    def _origin(self, value: fx.Node) -> fx.Node | None:
        """Return the quantize node that `value` is the dequantization of, perhaps rearranged."""
        while _is_rearrangement(value):
            value = value.args[0]  # type: ignore[assignment]
        return value.args[0] if _is_pair(value) else None  # type: ignore[return-value]

    def _integers(self, value: Any) -> tuple[fx.Node, Numbers] | None:
        """Return the quantized form of a float value, and its numbers."""
        origin = self._origin(value) if isinstance(value, fx.Node) else None
        numbers = _numbers(origin, _QUANTIZE) if origin is not None else None
        if origin is None or numbers is None:
            return None
        path = []
        while _is_rearrangement(value) and value not in self.made:
            path.append(value)
            value = value.args[0]
        made = self.made[value] if _is_rearrangement(value) else self._quantized(origin)
        for each in reversed(path):
            made = self._add(each.target, (made, *each.args[1:]), each, each, each.kwargs)
            self.made[each] = made
        return made, numbers

    def _quantized(self, node: Any) -> fx.Node:
        """Return the quantized form of what a quantize node gives."""
        if node not in self.made:
            value = arguments(node)["input"]
            known = self._integers(value)
            numbers = _numbers(node, _QUANTIZE)
            assert numbers is not None
            if known is not None and known[1] == numbers:
                self.made[node] = known[0]
            else:
                self.made[node] = self._add("aten.quantize_per_tensor", (value, *numbers, torch.quint8), node, node)
        return self.made[node]

    def _pack(
        self, node: fx.Node, prepack: str, geometry: tuple[Any, ...] = (), padding: Padding | None = None
    ) -> fx.Node | None:
        """Return the packed weight and bias of a layer, in front of it."""
        found = arguments(node)
        integers = self._weight(found["weight"], padding)
        bias = None if found["bias"] is None else self._value(found["bias"])
        if integers is None or (found["bias"] is not None and (bias is None or bias.dtype != torch.float32)):
            return None
        name, pack = self._constant_name(f"{name_of(node)}.packed"), find_operator(prepack)
        self.packed[name] = pack(integers, bias, *geometry)
        return self._holder(name, node)

    def _weight(self, node: fx.Node, padding: Padding | None) -> torch.Tensor | None:
        """Return a dequantized int8 weight as a quantized tensor."""
        name = _name(node)
        if name not in (_DEQUANTIZE, _BY_CHANNEL):
            return None
        found = arguments(node)
        integers = self._value(found["input"])
        if integers is None or integers.dtype != torch.int8 or node.meta["val"].dtype != torch.float32:
            return None
        if name == _DEQUANTIZE:
            scales = torch.full((integers.shape[0],), found["scale"], dtype=torch.float64)
            points: Any = torch.tensor(found["zero_point"])
        else:
            held, points = self._value(found["scales"]), found["zero_points"]
            points = torch.zeros(()) if points is None else self._value(points)
            if held is None or points is None or found["axis"] != 0:
                return None
            scales = held.double()
        if points.any() or not bool((scales > 0).all()):
            return None
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        integers = (padding.around(integers) if padding is not None else integers).contiguous()
        return torch._make_per_channel_quantized_tensor(integers, scales, zeros, 0)

    def _value(self, node: fx.Node) -> torch.Tensor | None:
        """Return the value of a constant, or of one that is dequantized; None for anything else."""
        if node.op == "get_attr":
            return None if str(node.target) in self.mutable else self.program.constants.get(str(node.target))
        return self._dequantized(node)

    def _dequantized(self, node: fx.Node) -> torch.Tensor | None:
        if not _name(node).startswith((_DEQUANTIZE, _BY_CHANNEL)):
            return None
        values = {each: self._value(each) if each.op == "get_attr" else None for each in node.all_input_nodes}
        if any(value is None for value in values.values()):
            return None
        target: Any = node.target
        return target(*fx.node.map_arg(node.args, values.get), **fx.node.map_arg(node.kwargs, values.get))  # type: ignore[no-any-return]

    def _constant_name(self, wanted: str) -> str:
        name, ordinal = wanted, 0
        while name in self.taken:
            ordinal += 1
            name = f"{wanted}_{ordinal}"
        self.taken.add(name)
        return name

    def _holder(self, name: str, anchor: fx.Node) -> fx.Node:
        with self.graph.inserting_before(anchor):
            made = self.graph.create_node("get_attr", name)
        made.meta = {**anchor.meta, "name": self.table.unique(name)}
        return made

    def _add(
        self, target: Any, args: Iterable[Any], anchor: fx.Node, like: fx.Node, kwargs: dict[str, Any] | None = None
    ) -> fx.Node:
        """Insert a call before `anchor`, with the type and provenance of `like`, and its name, which it gives up."""
        target = find_operator(target) if isinstance(target, str) else target
        with self.graph.inserting_before(anchor):
            made = self.graph.call_function(target, tuple(args), kwargs)
        made.meta = {**like.meta, "name": name_of(like)}
        like.meta["name"] = self.table.unique(name_of(like))
        return made

    def _replace(self, node: fx.Node, made: fx.Node) -> None:
        """Put `made` in the place of `node`."""
        node.replace_all_uses_with(made)
        self.graph.erase_node(node)


def _name(node: fx.Node) -> str:
    return operator_name(node.target) if node.op == "call_function" else ""


def _numbers(node: fx.Node, name: str) -> Numbers | None:
    """Return the numbers of an operator `name` on all of uint8; None for another operator, dtype or range."""
    if _name(node) != name:
        return None
    found = arguments(node)
    scale, point = found["scale"], found["zero_point"]
    value = (found["input"] if name == _QUANTIZE else node).meta["val"]
    if (found["quant_min"], found["quant_max"], found["dtype"]) != _FULL or value.dtype != torch.float32:
        return None
    usable = math.isfinite(scale) and scale > 0 and 0 <= point <= 255
    return (float(scale), int(point)) if usable else None


def _is_pair(node: fx.Node) -> bool:
    """Tell whether `node` dequantizes what a quantize node gives, with the same numbers."""
    numbers = _numbers(node, _DEQUANTIZE)
    return numbers is not None and numbers == _numbers(arguments(node)["input"], _QUANTIZE)


def _is_rearrangement(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    name = operator_name(node.args[0].target) if node.target is operator.getitem else _name(node)  # type: ignore
    if name in ("aten.pad", "aten.constant_pad_nd"):
        found = arguments(node)
        return found.get("mode", "constant") == "constant" and not found["value"] and bool(node.args)
    return name in _REARRANGEMENTS and bool(node.args)


def _at_run_time(value: fx.Node) -> fx.Node | None:
    """Return what `value` is with its own range for all of uint8; None where it is something else."""
    if _name(value) != f"{_DEQUANTIZE}.tensor":
        return None
    found = arguments(value)
    quantize = found["input"]
    if _name(quantize) != f"{_QUANTIZE}.tensor" or value.meta["val"].dtype != torch.float32:
        return None
    given = arguments(quantize)
    scale, point, source = found["scale"], found["zero_point"], given["input"]
    if scale.target is not operator.getitem or _name(scale.args[0]) != f"{_LIBRARY}choose_qparams.tensor":
        return None
    limits = ("quant_min", "quant_max", "dtype")
    chosen = arguments(scale.args[0])
    same = (
        (given["scale"], given["zero_point"]) == (scale, point)
        and point.target is operator.getitem
        and (scale.args[1], point.args) == (0, (scale.args[0], 1))
        and chosen["input"] is source
        and source.meta["val"].dtype == torch.float32
        and all(tuple(each[name] for name in limits) == _FULL for each in (found, given, chosen))
    )
    return source if same else None


def _effective(low: float | None, high: float | None, numbers: Numbers) -> tuple[float | None, float | None]:
    """Return the limits without those that no quantized value passes."""
    scale, point = numbers
    smallest, largest = -point * scale, (255 - point) * scale
    return (
        None if low is None or low <= smallest else low,
        None if high is None or high >= largest else high,
    )


def _is_pure(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    target: Any = node.target
    schema = schema_of(target) if node.op == "call_function" else None
    return schema is not None and bool(target._schema.returns) and not is_mutating(target) and not is_random(node)
