"""Variants of spelled-out attention: each becomes one operator that computes the same, at batch sizes never seen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import Context, Pipeline, Program
from burnish.compiler.capture import capture
from burnish.compiler.pipeline import run_pipeline
from tests.fusion_variants import fuse, operators

_ATTENTION = ("aten.scaled_dot_product_attention", "burnish.multi_head_attention", "burnish.self_attention")
_FEW = settings(max_examples=20, deadline=None)
_PIPELINE = "canonicalize,fold-constants,cse,fuse,dce"
_S, _T = 3, 37


def _fired(program: Program) -> bool:
    names = operators(program)
    return sum(name in _ATTENTION for name in names) == 1 and "aten.softmax.int" not in names


@st.composite
def _chains(draw: st.DrawFn) -> str:
    """Draw the text of attention over 3 or 4 dimensions, with its steps in any order."""
    dtype = draw(st.sampled_from(["f32", "f64"]))
    heads = draw(st.sampled_from([(), (2,)]))
    lead = ", ".join(map(str, ("B", *heads)))
    keys = "B, 1" if heads and draw(st.booleans()) else lead
    full, rank = f"{dtype}[{lead}, {_S}, {_T}]", 3 + len(heads)
    inputs, constants, lines = [f"%q: {dtype}[{lead}, {_S}, 4]"], [], []
    query, key = "%q", "%t"
    if draw(st.booleans()):
        lines.append(f"%qs = aten.mul.Tensor(%q, 0.5) : {dtype}[{lead}, {_S}, 4]")
        query = "%qs"
    if draw(st.booleans()):
        inputs.append(f"%k: {dtype}[{keys}, {_T}, 4]")
        swap = [*range(rank - 2), rank - 1, rank - 2]
        lines.append(f"%t = aten.permute(%k, dims={swap}) : {dtype}[{keys}, 4, {_T}]")
    else:
        inputs.append(f"%t: {dtype}[{keys}, 4, {_T}]")
    if draw(st.booleans()):
        constants.append(f"constant @root: {dtype}[] = 2.0")
        lines.append(f"%ts = aten.div.Tensor(%t, @root) : {dtype}[{keys}, 4, {_T}]")
        key = "%ts"
    inputs.append(f"%v: {dtype}[{keys}, {_T}, 5]")
    product = "aten.bmm" if rank == 3 and draw(st.booleans()) else "aten.matmul"
    lines.append(f"%s0 = {product}({query}, {key}) : {full}")
    kinds = draw(st.lists(st.sampled_from(["scale", "add", "low", "low"]), max_size=4))
    if draw(st.booleans()):
        # Once at most: with more, chance would hide whole rows.
        kinds.insert(draw(st.integers(0, len(kinds))), "hide")
    last = "%s0"
    for index, kind in enumerate(kinds):
        new, mask = f"%s{index + 1}", _mask(draw, index, dtype if kind == "add" else "b1", heads, inputs, constants)
        lines.append(f"{new} = {_step(draw, kind, last, mask)} : {full}")
        last = new
    lines.append(f"%w = aten.softmax.int({last}, dim={draw(st.sampled_from([-1, rank - 1]))}) : {full}")
    lines.append(f"%y = {product}(%w, %v) : {dtype}[{lead}, {_S}, 5]")
    head, body = "".join(f"{each}\n" for each in constants), "".join(f"  {each}\n" for each in lines)
    return f"# burnish 1\n{head}graph main({', '.join(inputs)}) {{\n{body}  return %y\n}}\n"


def _mask(
    draw: st.DrawFn, index: int, dtype: str, heads: tuple[int, ...], inputs: list[str], constants: list[str]
) -> str:
    """Declare a mask that broadcasts to the scores: an input with the batch, or a constant without."""
    rows = draw(st.sampled_from([1, _S]))
    inner = [*(draw(st.sampled_from([1, each])) for each in heads), rows, _T]
    if draw(st.booleans()):
        inputs.append(f"%m{index}: {dtype}[{', '.join(map(str, ('B', *inner)))}]")
        return f"%m{index}"
    shape = draw(st.sampled_from([inner, [1, *inner], inner[-2:], inner[-1:]]))
    constants.append(f"constant @m{index}: {dtype}[{', '.join(map(str, shape))}]")
    return f"@m{index}"


def _step(draw: st.DrawFn, kind: str, scores: str, mask: str) -> str:
    if kind == "scale":
        return draw(st.sampled_from([f"aten.mul.Tensor({scores}, 0.75)", f"aten.div.Tensor({scores}, 1.5)"]))
    if kind == "add":
        return f"aten.add.Tensor({', '.join(draw(st.permutations([scores, mask])))})"
    low = "-inf" if kind == "hide" else draw(st.sampled_from(["-3.4028234663852886e+38", "-1e+33"]))
    return draw(
        st.sampled_from(
            [
                f"aten.masked_fill.Scalar({scores}, {mask}, value={low})",
                f"aten.where.ScalarOther({mask}, {scores}, other={low})",
                f"aten.where.ScalarSelf({mask}, self={low}, other={scores})",
            ]
        )
    )


@_FEW
@given(_chains())
def test_chains(text: str) -> None:
    assert _fired(fuse(text))


@settings(max_examples=8, deadline=None)
@given(
    st.permutations("bhqd"), st.permutations("bhkd"), st.permutations("bhkd"), st.permutations("bhqd"), st.booleans()
)
def test_einsums(query: list[str], key: list[str], value: list[str], result: list[str], swapped: bool) -> None:
    sizes = {"b": 2, "h": 3, "q": 5, "k": 7, "d": 4}
    shapes = [", ".join(str(sizes[label]) for label in each) for each in (query, key, value, result)]
    names = ["".join(each) for each in (query, key, value, result)]
    scores = (f"{names[1]},{names[0]}", "%k, %q") if swapped else (f"{names[0]},{names[1]}", "%q, %k")
    text = f"""# burnish 1
graph main(%q: f32[{shapes[0]}], %k: f32[{shapes[1]}], %v: f32[{shapes[2]}]) {{
  %p = aten.einsum(equation="{scores[0]}->bhqk", tensors=[{scores[1]}]) : f32[2, 3, 5, 7]
  %w = aten.softmax.int(%p, dim=-1) : f32[2, 3, 5, 7]
  %y = aten.einsum(equation="bhqk,{names[2]}->{names[3]}", tensors=[%w, %v]) : f32[{shapes[3]}]
  return %y
}}
"""
    fused = _run(Program.parse(text))
    assert _fired(fused)


@pytest.mark.parametrize("value", [-1e4, -1e8, -1e9, -1e12, 0.0])
def test_fills_hide_or_are_refused(value: float) -> None:
    """Rows with 0, 1, 3 and 6 visible keys: one that none is visible in stays uniform."""
    seen = [[column < visible for column in range(6)] for visible in (0, 1, 3, 6)]

    class Attention(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return (q @ k.mT).masked_fill(~torch.tensor(seen), value).softmax(-1) @ v

    program = capture(Attention(), tuple(torch.randn(2, 2, size, 4) * 3 for size in (4, 6, 6)))
    assert _fired(_run(program)) == (value <= -1e9)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("low", [-1e33, -3.4028234663852886e38])
def test_a_row_that_two_fills_hide_stays_uniform(dtype: str, low: float) -> None:
    text = f"""# burnish 1
graph main(%q: {dtype}[B, 3, 4], %t: {dtype}[B, 4, 5], %v: {dtype}[B, 5, 6], %m: b1[B, 3, 5]) {{
  %p = aten.matmul(%q, %t) : {dtype}[B, 3, 5]
  %a = aten.where.ScalarOther(%m, %p, other={low}) : {dtype}[B, 3, 5]
  %b = aten.masked_fill.Scalar(%a, %m, value={low}) : {dtype}[B, 3, 5]
  %c = aten.mul.Tensor(%b, 0.75) : {dtype}[B, 3, 5]
  %w = aten.softmax.int(%c, dim=-1) : {dtype}[B, 3, 5]
  %y = aten.matmul(%w, %v) : {dtype}[B, 3, 6]
  return %y
}}
"""
    program = fuse(text)
    assert _fired(program)
    values = program.samples["v"]
    uniform = values.mean(dim=1, keepdim=True).expand(-1, 3, -1)
    assert torch.allclose(program(**program.samples), uniform, atol=1e-6)


def test_nobody_sees_anything_gives_zeros() -> None:
    """The one difference that the rule makes: NaN rows, whose keys are all hidden by -inf, become zeros."""
    text = """# burnish 1
graph main(%q: f32[B, 2, 3, 4], %k: f32[B, 2, 4, 5], %v: f32[B, 2, 5, 6], %x: f32[B, 2, 3, 5]) {
  %p = aten.matmul(%q, %k) : f32[B, 2, 3, 5]
  %m = aten.add.Tensor(%p, %x) : f32[B, 2, 3, 5]
  %w = aten.softmax.int(%m, dim=-1) : f32[B, 2, 3, 5]
  %y = aten.matmul(%w, %v) : f32[B, 2, 3, 6]
  return %y
}
"""
    program = Program.parse(text)
    inputs = {**program.samples, "x": torch.full((2, 2, 3, 5), float("-inf"))}
    inputs = {name: torch.randn(2, *value.shape[1:]) if name != "x" else value for name, value in inputs.items()}
    assert program(**inputs).isnan().all()
    assert (fuse(text)(**inputs) == 0).all()


class _Layer(torch.nn.Module):
    """Attention as people write it, in a layer with projections."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(16, 48)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        batch, size, width = x.shape
        q, k, v = self.qkv(x).view(batch, size, 3, 4, 4).permute(2, 0, 3, 1, 4)
        scores = (q / 2.0) @ k.transpose(-2, -1)
        scores = scores.masked_fill(torch.ones(size, size).tril() == 0, float("-inf"))
        scores = scores.masked_fill(~seen[:, None, None, :], torch.finfo(scores.dtype).min)
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, size, width)


def test_captured_layer_with_a_causal_mask() -> None:
    seen = torch.ones(2, 6, dtype=torch.bool)
    seen[1, 4:] = False
    assert _fired(_run(capture(_Layer().eval(), (torch.randn(2, 6, 16), seen))))


def test_multihead_attention_with_weights_is_refused() -> None:
    layer = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(2, 6, 16)
    _, records = run_pipeline(Pipeline.parse(_PIPELINE), capture(layer, (x, x, x)), Context(), verify=4)
    assert "its weights have 2 users" in [skip.reason for record in records for skip in record.skips]


def _run(program: Program) -> Program:
    return run_pipeline(Pipeline.parse(_PIPELINE), program, Context(), verify=4)[0]
