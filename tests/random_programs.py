"""Random Programs and random pipelines for property tests.

A Program is drawn as text, a step at a time; each step takes earlier values and adds a few lines that are known to be
well typed. Values are feature maps `f32[B, C, H, W]` or rows `f32[B, N]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from burnish import Pipeline

Draw = Callable[[st.SearchStrategy], object]

PASSES = (
    "canonicalize",
    "fold-batch-norm",
    "fold-constants",
    "fold-constants{max_growth=0}",
    "cse",
    "dce",
    "repeat{max=3}(canonicalize,cse,dce)",
    "canonicalize,fuse",
    "canonicalize,fuse,dce",
)


@dataclass
class _Text:
    draw: Draw
    lines: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # without the batch

    def pick(self, rank: int) -> str | None:
        fitting = [name for name, shape in self.shapes.items() if len(shape) == rank]
        return self.draw(st.sampled_from(fitting)) if fitting else None

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def coin(self) -> bool:
        return self.draw(st.booleans())

    def constant(self, suffix: str, shape: tuple[int, ...]) -> str:
        name = f"c{len(self.constants)}.{suffix}"
        self.constants.append(f"constant @{name}: f32[{', '.join(map(str, shape))}]")
        return f"@{name}"

    def add(self, call: str, shape: tuple[int, ...]) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"  %{name} = {call} : f32[{', '.join(['B', *map(str, shape)])}]")
        self.shapes[name] = shape
        return name


def _pointwise(text: _Text, name: str) -> None:
    form = text.draw(
        st.sampled_from(
            [
                "aten.relu(%{})", "aten.relu6(%{})", "aten.sigmoid(%{})", "aten.silu(%{})", "aten.gelu(%{})",
                "aten.hardtanh(%{}, min_val=0, max_val=6)", "aten.clamp(%{}, min=0)", "aten.clone(%{})",
                "aten.dropout(%{}, p=0.5, train=False)", "aten.mul.Tensor(%{}, other=1)", "aten.tanh(%{})",
                "aten.mul.Tensor(%{}, other=-0.5)", "aten.add.Tensor(%{}, other=0)", "aten.contiguous(%{})",
                "aten.to.dtype(%{}, dtype=f32)", "aten.neg(%{})", "aten.div.Tensor(%{}, other=1)",
                "aten.detach(%{})", "aten.alias(%{})",
            ]
        )
    )  # fmt: skip
    text.add(form.format(name), text.shapes[name])


def _binary(text: _Text, name: str) -> None:
    same = [other for other, shape in text.shapes.items() if shape == text.shapes[name]]
    other = text.draw(st.sampled_from(same))
    operator = text.draw(st.sampled_from(["add", "mul", "sub", "maximum"]))
    operator = operator if operator == "maximum" else f"{operator}.Tensor"
    text.add(f"aten.{operator}(%{name}, %{other})", text.shapes[name])


def _batch_norm(text: _Text, name: str) -> str:
    channels = text.shapes[name][0]
    affine = text.coin()
    weight, bias = (text.constant(each, (channels,)) if affine else "None" for each in ("weight", "bias"))
    mean, variance = text.constant("running_mean", (channels,)), text.constant("running_var", (channels,))
    eps = text.draw(st.sampled_from(["1e-05", "0.001"]))
    return text.add(
        f"aten.batch_norm(%{name}, {weight}, {bias}, {mean}, {variance}, training=False, momentum=0.1, eps={eps},"
        " cudnn_enabled=True)",
        text.shapes[name],
    )


def _convolution(text: _Text, name: str) -> None:
    channels, height, width = text.shapes[name]
    groups = text.draw(st.sampled_from([each for each in (1, 2, channels) if channels % each == 0]))
    out = groups * text.number(1, 3)
    size = text.draw(st.sampled_from([each for each in (1, 3) if each <= min(height, width)]))
    padding = text.number(0, size // 2)
    bias = text.constant("bias", (out,)) if text.coin() else "None"
    if text.coin():
        name = _batch_norm(text, name)
    weight = text.constant("weight", (out, channels // groups, size, size))
    shape = (out, height + 2 * padding - size + 1, width + 2 * padding - size + 1)
    result = text.add(f"aten.conv2d(%{name}, {weight}, {bias}, padding=[{padding}, {padding}], groups={groups})", shape)
    if text.coin():
        _batch_norm(text, result)


def _linear(text: _Text, name: str) -> None:
    (features,) = text.shapes[name]
    out = text.number(1, 5)
    if text.coin():
        bias = text.constant("bias", (out,)) if text.coin() else "None"
        result = text.add(f"aten.linear(%{name}, {text.constant('weight', (out, features))}, {bias})", (out,))
    else:
        weight, bias = text.constant("weight", (features, out)), text.constant("bias", (out,))
        result = text.add(f"aten.addmm({bias}, %{name}, {weight})", (out,))
    if text.coin():
        _batch_norm(text, result)


def _reshape(text: _Text, name: str) -> None:
    channels, height, width = text.shapes[name]
    which = text.number(0, 4)
    if which == 0:
        text.add(f"aten.flatten.using_ints(%{name}, start_dim=1)", (channels * height * width,))
    elif which == 1:
        text.add(f"aten.mean.dim(%{name}, dim=[2, 3])", (channels,))
    elif which == 2:
        inner = text.add(f"aten.transpose.int(%{name}, dim0=1, dim1=2)", (height, channels, width))
        text.add(f"aten.permute(%{inner}, dims=[0, 2, 1, 3])", (channels, height, width))
    elif which == 3:
        text.add(f"aten.view(%{name}, size=[-1, {channels}, {height}, {width}])", (channels, height, width))
    else:
        text.add(f"aten.cat([%{name}, %{name}], dim=1)", (2 * channels, height, width))


_MAP_STEPS = (_pointwise, _pointwise, _binary, _convolution, _convolution, _batch_norm, _reshape)
_ROW_STEPS = (_pointwise, _binary, _linear, _linear)


@st.composite
def programs(draw: Draw) -> str:
    """Draw the text of a Program with one feature map as input and one or two outputs."""
    text = _Text(draw)
    shape = (text.number(1, 4), text.number(2, 4), text.number(2, 4))
    text.shapes["x"] = shape
    for _ in range(text.number(1, 9)):
        rows = text.pick(1)
        if rows is not None and text.coin():
            draw(st.sampled_from(_ROW_STEPS))(text, rows)
        else:
            name = text.pick(3)
            assert name is not None
            draw(st.sampled_from(_MAP_STEPS))(text, name)
    names = [name for name in text.shapes if name != "x"]
    returned = [names[-1]] if text.coin() else [names[-1], draw(st.sampled_from(names))]
    head = ["# burnish 1", *text.constants, f"graph main(%x: f32[{', '.join(['B', *map(str, shape)])}]) {{"]
    return "\n".join([*head, *text.lines, f"  return {', '.join(f'%{name}' for name in returned)}", "}", ""])


def pipelines() -> st.SearchStrategy[Pipeline]:
    """Draw a pipeline of shipped passes in any order."""
    return st.lists(st.sampled_from(PASSES), min_size=1, max_size=6).map(",".join).map(Pipeline.parse)
