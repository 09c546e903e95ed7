"""smooth-quant: the same float function for every maker of a value, and a planted outlier that int8 survives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from burnish import Context, PassError, Pipeline, Program
from burnish.compiler.numerics import drift
from burnish.compiler.pipeline import run_pipeline

# What makes %v from %x and %z, f32[B, 5, 8], with its constants.
_NORM = ["n.weight: f32[8]", "n.bias: f32[8]"]
_MAKERS = {
    "layer_norm": (_NORM, ["%v = aten.layer_norm(%x, [8], @n.weight, @n.bias)"]),
    "layer_norm_plain": ([], ["%v = aten.layer_norm(%x, [8])"]),
    "rms_norm": (["n.weight: f32[8]"], ["%v = aten.rms_norm(%x, [8], @n.weight, 1e-05)"]),
    "skip_layer_norm": (
        _NORM,
        ["%n = burnish.skip_layer_norm(%x, %z, None, [8], @n.weight, @n.bias)", "%v = getitem(%n, 0)"],
    ),
    "skip_rms_norm": (
        ["n.weight: f32[8]"],
        ["%n = burnish.skip_rms_norm(%x, %z, None, [8], @n.weight)", "%v = getitem(%n, 0)"],
    ),
    "embedding": (
        ["t: f32[4, 8]", *_NORM],
        [
            "%i = aten.zeros_like(%z, dtype=i64)",
            "%j = aten.select.int(%i, 2, 0)",
            "%v = burnish.embedding_layer_norm([%j], [@t], %x, [8], @n.weight, @n.bias)",
        ],
    ),
    "linear": (["a.weight: f32[8, 8]", "a.bias: f32[8]"], ["%v = aten.linear(%x, @a.weight, @a.bias)"]),
    "leaky": (
        ["a.weight: f32[8, 8]", "a.bias: f32[8]"],
        ["%v = burnish.linear_act(%x, @a.weight, @a.bias, activation='leaky_relu', parameters=[0.2])"],
    ),
    "attention": (
        ["a.weight: f32[12, 8]", "a.bias: f32[12]"],
        ["%v = burnish.self_attention(%x, @a.weight, @a.bias, heads=4, kv_heads=1, scale=0.5)"],
    ),
    "heads": (
        ["a.weight: f32[4, 8]", "a.bias: f32[4]"],
        [
            "%k = aten.slice.Tensor(%z, 2, 0, 4)",
            "%u = aten.linear(%x, @a.weight, @a.bias)",
            "%v = burnish.multi_head_attention(%z, %k, %u, heads=4, kv_heads=2, scale=0.5)",
        ],
    ),
    "gate": (
        ["a.weight: f32[16, 8]", "a.bias: f32[16]"],
        [
            "%u = aten.linear(%x, @a.weight, @a.bias)",
            "%p = aten.split_with_sizes(%u, [8, 8], dim=-1)",
            "%f = getitem(%p, 0)",
            "%g = getitem(%p, 1)",
            "%s = aten.silu(%f)",
            "%v = aten.mul.Tensor(%s, %g)",
        ],
    ),
}
_READERS = {
    "linear": (["q: f32[6, 8]", "qb: f32[6]"], "%q = aten.linear(%v, @q, @qb)"),
    "activated": (["r: f32[3, 8]"], "%r = burnish.linear_act(%v, @r, activation='gelu')"),
    "attention": (["s: f32[12, 8]"], "%o = burnish.self_attention(%v, @s, heads=2, kv_heads=2, scale=0.7)"),
}


def _run(passes: str, program: Program, data: list[torch.Tensor] | list[dict[str, torch.Tensor]]) -> Program:
    return run_pipeline(Pipeline.parse(passes), program, Context(calibration=data), verify=4)[0]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(_MAKERS)),
    st.sets(st.sampled_from(sorted(_READERS)), min_size=1),
    st.floats(0, 1),
    st.integers(0, 7),
    st.floats(-3, 3),
)
def test_the_same_function(maker: str, readers: set[str], alpha: float, channel: int, size: float) -> None:
    constants, lines = _MAKERS[maker]
    constants = [*constants, *(each for name in sorted(readers) for each in _READERS[name][0])]
    lines = [*lines, *(_READERS[name][1] for name in sorted(readers))]
    text = "".join(f"constant @{each}\n" for each in constants)
    body = "".join(f"  {each}\n" for each in lines).replace("'", '"')
    results = ", ".join(_READERS[name][1].split()[0] for name in sorted(readers))
    head = f"# burnish 1\n# facts: canonical\n{text}graph main(%x: f32[B, 5, 8], %z: f32[B, 5, 8]) {{\n"
    program = Program.parse(f"{head}{body}  return {results}\n}}\n")
    generator = torch.Generator().manual_seed(channel)
    x, z = (torch.randn(3, 5, 8, generator=generator) for _ in range(2))
    x[..., channel] *= 10.0**size
    context = Context(calibration=[{"x": x, "z": z}])
    smoothed, records = run_pipeline(Pipeline.parse(f"smooth-quant{{alpha={alpha}}}"), program, context, verify=4)
    assert not {skip.node for skip in records[0].skips} & {"q", "r", "o"}
    for found, expected in zip(_leaves(smoothed(x, z)), _leaves(program(x, z)), strict=True):
        assert drift(found, expected) < 1e-6


def _leaves(outputs: object) -> list[torch.Tensor]:
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]  # type: ignore[list-item]


class _Outlier(nn.Module):
    """A block whose norm makes one channel a hundred times as large as the others, as large language models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)
        with torch.no_grad():
            self.norm.weight[5] = 100.0
            self.up.weight[:, 5] /= 100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(torch.tanh(self.up(self.norm(x))))
        return y


def test_a_planted_outlier() -> None:
    model = _Outlier().eval()
    data = [torch.randn(8, 6, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    program = burnish.capture(model, (data[0],))
    with torch.no_grad():
        expected = model(data[0])
    errors = {
        passes: float((_run(f"canonicalize,{passes}", program, data)(data[0]) - expected).norm() / expected.norm())
        for passes in ("quantize", "smooth-quant,quantize", "quantize{preset=accurate}")
    }
    assert errors["quantize"] > 4 * errors["smooth-quant,quantize"]
    assert errors["quantize"] > 4 * errors["quantize{preset=accurate}"]


def test_zeros_stay_and_what_is_not_finite_is_left() -> None:
    program = Program.parse("""# burnish 1
# facts: canonical
constant @n.weight: f32[8]
constant @w: f32[4, 8]
constant @a.weight: f32[8, 8]
constant @v: f32[4, 8]
graph main(%x: f32[B, 8]) {
  %n = aten.rms_norm(%x, [8], @n.weight)
  %y = aten.linear(%n, @w)
  %a = aten.linear(%x, @a.weight)
  %r = aten.relu(%a)
  %z = aten.linear(%r, @v)
  return %y, %z
}
""")
    program.constants["n.weight"] = program.constants["n.weight"] * torch.tensor([0.0] * 3 + [1.0] * 5)
    program.constants["w"][:, 4] = 0
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    x[:, 3] *= 16
    smoothed, records = run_pipeline(
        Pipeline.parse("smooth-quant"), program, Context(calibration=[x, torch.full((1, 8), 3e38)]), verify=4
    )
    assert [skip.reason for skip in records[0].skips if skip.node == "z"] == ["its input %r is not finite on them"]
    assert all(bool(each.isfinite().all()) for each in smoothed.constants.values())
    idle = [0, 1, 2, 4]
    assert torch.equal(smoothed.constants["w_1"][:, idle], program.constants["w"][:, idle])
    assert not torch.equal(smoothed.constants["w_1"][:, 3], program.constants["w"][:, 3])
    assert drift(smoothed(x)[0], program(x)[0]) < 1e-5


@pytest.mark.parametrize("option", ["alpha=1.5", "alpha=-0.1", "samples=0"])
def test_bad_options(option: str) -> None:
    program = burnish.capture(nn.Linear(4, 4), (torch.randn(2, 4),))
    with pytest.raises(burnish.OptionError, match=f"option '{option.partition('=')[0]}' must be"):
        _run(f"canonicalize,smooth-quant{{{option}}}", program, [torch.randn(2, 4)])


def test_data_are_needed_where_there_is_something_to_smooth() -> None:
    program = burnish.capture(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), (torch.randn(2, 4),))
    with pytest.raises(PassError, match="'smooth-quant' needs calibration data"):
        run_pipeline(Pipeline.parse("canonicalize,smooth-quant"), program, Context())


def test_a_single_vector() -> None:
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32)).eval()
    x = torch.randn(32)
    compiled = burnish.compile(model, "default,smooth-quant", inputs=(x,), calibration=[x])
    with torch.no_grad():
        assert torch.allclose(compiled.program(x), model(x), rtol=1e-5, atol=1e-6)
