"""Linear forms, scales, adapters and projections: random variants of each pattern, and modules as people write them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import burnish
from burnish.compiler.context import Context
from burnish.compiler.pipeline import Pipeline, run_pipeline
from burnish.compiler.program import Program
from tests.fusion_variants import fuse, operators, reasons

_FEW = settings(max_examples=12, deadline=None)


def graph(constants: Sequence[str], lines: Sequence[str], inputs: str = "%x: f32[B, 4]", result: str = "%out") -> str:
    """Write a Program's text."""
    head = "".join(f"constant @{each}\n" for each in constants)
    return (
        f"# burnish 1\n{head}graph main({inputs}) {{\n"
        + "".join(f"  {each}\n" for each in (*lines, f"return {result}"))
        + "}\n"
    )


@st.composite
def affine_steps(draw: st.DrawFn, vectors: Sequence[str], dtype: str = "f32") -> tuple[list[str], list[str]]:
    """One to three scales and shifts in a row of %y0: constants, and lines that end in %out."""
    count = draw(st.integers(1, 3))
    constants, lines = [], []
    for index in range(count):
        value = draw(st.sampled_from(["0.75", "-1.5", "2", *vectors, f"{dtype}[]", f"{dtype}[1]"]))
        if "[" in value:
            constants.append(f"c{index}: {value}")
            value = f"@c{index}"
        source, target = f"%y{index}", "%out" if index == count - 1 else f"%y{index + 1}"
        # A random constant may be next to zero, which no quotient should be by.
        name = draw(st.sampled_from(["mul", "add", "sub"] if value[0] == "@" else ["mul", "add", "sub", "div"]))
        swap = value[0] == "@" and draw(st.booleans())
        operands = f"{value}, {source}" if swap else f"{source}, {value}"
        alpha = ", alpha=2" if name in ("add", "sub") and draw(st.booleans()) else ""
        lines.append(f"{target} = aten.{name}.Tensor({operands}{alpha})")
    return constants, lines


@_FEW
@given(st.data())
def test_scales_behind_a_linear_layer(data: st.DataObject) -> None:
    dtype, bias = data.draw(st.sampled_from(["f32", "f64"])), data.draw(st.booleans())
    constants, lines = data.draw(affine_steps([f"{dtype}[6]", f"{dtype}[1, 6]"], dtype))
    constants = [f"w: {dtype}[6, 4]", f"b: {dtype}[6]", *constants] if bias else [f"w: {dtype}[6, 4]", *constants]
    layer = f"%y0 = aten.linear(%x, @w{', @b' if bias else ''})"
    fused = fuse(graph(constants, [layer, *lines], f"%x: {dtype}[B, 3, 4]"))
    assert operators(fused) == ["aten.linear"]


@_FEW
@given(st.data())
def test_scales_behind_a_convolution(data: st.DataObject) -> None:
    constants, lines = data.draw(affine_steps(["f32[4, 1, 1]", "f32[1, 4, 1, 1]"]))
    kind = data.draw(st.sampled_from(["conv2d", "conv_transpose2d.input"]))
    layer = f"%y0 = aten.{kind}(%x, @w, @b, padding=[1, 1], groups=2)"
    fused = fuse(graph(["w: f32[4, 2, 3, 3]", "b: f32[4]", *constants], [layer, *lines], "%x: f32[B, 4, 6, 6]"))
    assert operators(fused) == [f"aten.{kind}"]


@_FEW
@given(st.data())
def test_scales_before_a_layer(data: st.DataObject) -> None:
    conv, pad = data.draw(st.booleans()), data.draw(st.integers(0, 1))
    constants, lines = data.draw(affine_steps(["f32[4, 1, 1]" if conv else "f32[4]"]))
    constants.append("w: f32[6, 2, 3, 3]" if conv else "w: f32[6, 4]")
    layer = (
        f"%z = aten.conv2d(%out, @w, None, [1, 1], [{pad}, {pad}], [1, 1], 2)" if conv else "%z = aten.linear(%out, @w)"
    )
    text = graph(constants, [*lines, layer], "%y0: f32[B, 4, 6, 6]" if conv else "%y0: f32[B, 4]", "%z")
    shifts = any("add" in line or "sub" in line for line in lines)
    fused = fuse(text)
    if not (conv and pad and shifts):
        assert len(operators(fused)) == 1
    else:
        assert any("pads with zeros" in reason for reason in reasons(text))


@_FEW
@given(
    st.permutations([0, 1, 2]).filter(lambda order: order != [0, 1, 2]),
    st.booleans(),
    st.sampled_from(["f32[6]", "f32[]", "f32[3, 6]", "f32[3, 1]"]),
)
def test_scales_through_views(order: list[int], again: bool, constant: str) -> None:
    lines = [
        "%y = aten.linear(%x, @w, @b)",
        "%s = aten.reshape(%y, [3, 3, 3, 6])",
        f"%{'p' if again else 'q'} = aten.permute(%s, {[*order, 3]})",
        *(["%q = aten.reshape(%p, [9, 3, 6])"] if again else []),
        "%out = aten.mul.Tensor(%q, @c)",
    ]
    fused = fuse(graph(["w: f32[6, 4]", "b: f32[6]", f"c: {constant}"], lines, "%x: f32[3, 9, 4]"), batches=(3,))
    assert ("aten.mul.Tensor" not in operators(fused)) == (constant in ("f32[6]", "f32[]"))


@_FEW
@given(st.data())
def test_products_with_a_constant(data: st.DataObject) -> None:
    rank = data.draw(st.integers(2, 4))
    shape = ", ".join([*["B", "3", "2"][: rank - 1], "4"])
    kind = data.draw(st.sampled_from(["mm", "addmm", "matmul"] if rank == 2 else ["matmul"]))
    product = "%y = aten.addmm(@b, %x, @w)" if kind == "addmm" else f"%y = aten.{kind}(%x, @w)"
    bias = data.draw(st.sampled_from(["f32[6]", "f32[1, 6]", "f32[1]"]))
    swap = data.draw(st.booleans())
    add = f"%out = aten.add.Tensor({'@c, %y' if swap else '%y, @c'})"
    fused = fuse(graph(["w: f32[4, 6]", "b: f32[6]", f"c: {bias}"], [product, add], f"%x: f32[{shape}]"))
    assert operators(fused) == ["aten.linear"]


@_FEW
@given(st.data())
def test_sums_of_layers_and_adapters(data: st.DataObject) -> None:
    """Layers, adapters and another tensor in a sum of any order and any shape of tree."""
    names, lines, constants = ["%res"], [], ["w: f32[6, 8]", "wb: f32[6]"]
    lines.append("%base = aten.linear(%x, @w, @wb)")
    names.append("%base")
    for index in range(data.draw(st.integers(1, 3))):
        biases = data.draw(st.booleans())
        constants += [f"a{index}: f32[2, 8]", f"b{index}: f32[6, 2]", f"ab{index}: f32[2]", f"bb{index}: f32[6]"]
        source = "%x"
        where = data.draw(st.sampled_from(["before", "between", "behind"]))
        steps = [("low", f"@a{index}", f"@ab{index}"), ("high", f"@b{index}", f"@bb{index}")]
        if where == "before":
            lines.append(f"%s{index} = aten.mul.Tensor(%x, 0.5)")
            source = f"%s{index}"
        for step, weight, bias in steps:
            lines.append(f"%{step}{index} = aten.linear({source}, {weight}{f', {bias}' if biases else ''})")
            source = f"%{step}{index}"
            if (step, where) in (("low", "between"), ("high", "behind")):
                lines.append(f"%s{index} = aten.mul.Tensor({source}, 2.0)")
                source = f"%s{index}"
        names.append(source)
    names = data.draw(st.permutations(names))
    while len(names) > 1:
        at = data.draw(st.integers(0, len(names) - 2))
        result = "%out" if len(names) == 2 else f"%t{len(names)}"
        lines.append(f"{result} = aten.add.Tensor({names[at]}, {names[at + 1]})")
        names[at : at + 2] = [result]
    fused = fuse(graph(constants, lines, "%x: f32[B, 8], %res: f32[B, 6]"))
    # The residual is added by itself, or by the layer that `layers` makes of both.
    assert len(operators(fused)) <= 2
    assert sum("linear" in name for name in operators(fused)) == 1


@_FEW
@given(st.integers(2, 6), st.integers(1, 12), st.integers(2, 6), st.booleans(), st.booleans())
def test_layers_in_a_row(inputs: int, hidden: int, outputs: int, first: bool, second: bool) -> None:
    lines = [
        f"%h = aten.linear(%x, @w1{', @b1' if first else ''})",
        f"%out = aten.linear(%h, @w2{', @b2' if second else ''})",
    ]
    constants = [
        f"w1: f32[{hidden}, {inputs}]",
        f"b1: f32[{hidden}]",
        f"w2: f32[{outputs}, {hidden}]",
        f"b2: f32[{outputs}]",
    ]
    text = graph(constants, lines, f"%x: f32[B, 3, {inputs}]")
    count = len(operators(fuse(text)))
    if inputs * outputs >= hidden * (inputs + outputs):
        assert count == 2
        assert any("bottleneck" in reason for reason in reasons(text))
    else:
        assert count == 1 or any("cancel" in reason for reason in reasons(text))


@_FEW
@given(st.data())
def test_projections_of_attention(data: st.DataObject) -> None:
    """Query, key and value as layers or parts of layers, in any order in these, with and without biases."""
    kv_heads = data.draw(st.sampled_from([1, 2]))
    sizes = {"q": 6, "k": 3 * kv_heads, "v": 3 * kv_heads}
    groups = data.draw(st.sampled_from([["q", "k", "v"], ["qkv"], ["q", "kv"], ["vqk"], ["qk", "v"]]))
    lines, constants = [], []
    for group in groups:
        bias = data.draw(st.booleans())
        width = sum(sizes[each] for each in group)
        constants += [f"w{group}: f32[{width}, 5]", f"b{group}: f32[{width}]"]
        name = f"%{group}" if len(group) == 1 else f"%all_{group}"
        lines.append(f"{name} = aten.linear(%x, @w{group}{f', @b{group}' if bias else ''})")
        if len(group) > 1 and data.draw(st.booleans()):
            lines.append(f"%parts_{group} = aten.split_with_sizes({name}, {[sizes[each] for each in group]}, 2)")
            lines += [f"%{each} = getitem(%parts_{group}, {index})" for index, each in enumerate(group)]
        elif len(group) > 1:
            start = 0
            for each in group:
                lines.append(f"%{each} = aten.slice.Tensor({name}, 2, {start}, {start + sizes[each]})")
                start += sizes[each]
    mask = data.draw(st.sampled_from(["", ", @m"]))
    causal = data.draw(st.booleans())
    more = f"{mask}, heads=2, kv_heads={kv_heads}, scale=0.5, causal={causal}"
    lines.append(f"%out = burnish.multi_head_attention(%q, %k, %v{more})")
    fused = fuse(graph([*constants, "m: f32[1, 1, 4, 4]"], lines, "%x: f32[B, 4, 5]"))
    assert operators(fused) == ["burnish.self_attention"]


class LoraLinear(nn.Module):
    """A linear layer with low-rank adapters, as peft lays one out: base layer, dropout, A, B and a scaling by name."""

    def __init__(self, inputs: int, outputs: int, names: Sequence[str], rank: int = 2) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs)
        self.lora_dropout = nn.ModuleDict({name: nn.Dropout(0.1) for name in names})
        self.lora_A = nn.ModuleDict({name: nn.Linear(inputs, rank, bias=False) for name in names})
        self.lora_B = nn.ModuleDict({name: nn.Linear(rank, outputs, bias=False) for name in names})
        self.scaling = {name: 2.0 / (index + 1) for index, name in enumerate(names)}

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        dtype = result.dtype
        for name in self.lora_A:
            x = x.to(self.lora_A[name].weight.dtype)
            result = result + self.lora_B[name](self.lora_A[name](self.lora_dropout[name](x))) * self.scaling[name]
        return result.to(dtype)


class Conv1D(nn.Module):
    """GPT-2's layer: a matrix of [inputs, outputs], and rows made of tokens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return rows.view(*x.shape[:-1], self.bias.numel())


class LayerScale(nn.Module):
    """A block's last layer, in ConvNeXt's or in ViT's form, times a factor by channel."""

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.layer: nn.Module = nn.Conv2d(6, 6, 3, padding=1) if spatial else nn.Linear(6, 6)
        self.gamma = nn.Parameter(torch.randn(6, 1, 1) if spatial else torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.layer(x)


def captured(model: nn.Module, x: Tensor) -> Program:
    """Capture and fuse at level 4, and compare with the model at another batch size."""
    program = burnish.capture(model.eval(), (x,))
    fused, _ = run_pipeline(
        Pipeline.parse("canonicalize,fold-constants,cse,dce,fuse,dce"), program, Context(), verify=4
    )
    other = torch.randn(5, *x.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(fused(other), model(other), rtol=1e-4, atol=1e-5)
    return fused


@pytest.mark.parametrize("names", [["default"], ["first", "second", "third"]])
def test_a_module_with_adapters_is_one_layer(names: list[str]) -> None:
    torch.manual_seed(0)
    fused = captured(LoraLinear(8, 6, names), torch.randn(2, 3, 8))
    assert operators(fused) == ["aten.linear"]


def test_conv1d_is_one_layer() -> None:
    torch.manual_seed(0)
    assert operators(captured(Conv1D(4, 6), torch.randn(2, 3, 4))) == ["aten.linear"]


@pytest.mark.parametrize("spatial", [False, True])
def test_layer_scale_folds(spatial: bool) -> None:
    torch.manual_seed(0)
    fused = captured(LayerScale(spatial), torch.randn(2, 6, 8, 8) if spatial else torch.randn(2, 3, 6))
    assert not any("mul" in name for name in operators(fused))


def test_adapters_merge_in_double_precision() -> None:
    """The merged weight is the float64 one, rounded once."""
    torch.manual_seed(0)
    model = LoraLinear(8, 6, ["default"])
    fused = captured(model, torch.randn(2, 3, 8))
    a, b = model.lora_A["default"].weight.double(), model.lora_B["default"].weight.double()
    expected = (model.base_layer.weight.double() + 2.0 * b @ a).float()
    found = next(value for value in fused.used_constants().values() if value.shape == expected.shape)
    assert torch.equal(found, expected)


def test_a_sum_of_many_layers_takes_linear_time() -> None:
    """300 layers on one input, added one by one, are one layer after one rewrite of the sum."""
    lines = [f"%y{index} = aten.linear(%x, @w{index})" for index in range(300)]
    lines.append("%s1 = aten.add.Tensor(%y0, %y1)")
    lines += [f"%s{index} = aten.add.Tensor(%s{index - 1}, %y{index})" for index in range(2, 300)]
    text = graph([f"w{index}: f32[3, 4]" for index in range(300)], lines, result="%s299")
    assert operators(fuse(text)) == ["aten.linear"]
