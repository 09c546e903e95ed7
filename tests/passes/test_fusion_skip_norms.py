"""Norms of residual sums and of embeddings: operands in any order, who reads the sum, dtypes, and parameters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fusion_variants import fuse, operators

_BOOL = st.booleans()


@given(st.data(), st.sampled_from(["f32", "f64"]), _BOOL, _BOOL, _BOOL, _BOOL)
@settings(max_examples=14, deadline=None)
def test_residual(data: st.DataObject, dtype: str, rms: bool, weight: bool, layer: bool, stream: bool) -> None:
    own_bias, swapped = data.draw(_BOOL), data.draw(_BOOL)
    call = "rms_norm" if rms else "layer_norm"
    parameters = ", weight=@scale" if weight else ""
    parameters += ", bias=@shift" if data.draw(_BOOL) and not rms else ""
    parameters += data.draw(st.sampled_from(["", ", eps=0.01"]))
    branch = f"%y = aten.linear(%b, @w{', @more' if own_bias else ''})" if layer else "%y = aten.tanh(%b)"
    operands = "%y, %a" if swapped else "%a, %y"
    text = f"""# burnish 1
constant @w: {dtype}[8, 8]
constant @more: {dtype}[8]
constant @scale: {dtype}[8]
constant @shift: {dtype}[8]
graph main(%a: {dtype}[B, S, 8], %b: {dtype}[B, S, 8]) {{
  {branch}
  %sum = aten.add.Tensor({operands})
  %norm = aten.{call}(%sum, normalized_shape=[8]{parameters})
  %out = aten.sigmoid(%norm)
  return %out{", %sum" if stream else ""}
}}"""
    fused = fuse(text)
    assert operators(fused).count(f"burnish.skip_{call}") == 1
    assert operators(fused).count("getitem") == 1 + stream
    assert "aten.add.Tensor" not in operators(fused)
    assert ("%b, @w)" in fused.print()) == layer


@given(st.permutations(["%word", "%kind", "%place", "@positions"]), st.integers(2, 4), _BOOL, _BOOL)
@settings(max_examples=14, deadline=None)
def test_embeddings(addends: list[str], count: int, chained: bool, post: bool) -> None:
    used = addends[:count]
    if chained or count < 4:
        sums = f"%s1 = aten.add.Tensor({used[0]}, {used[1]})\n"
        for index, each in enumerate(used[2:], 2):
            sums += f"  %s{index} = aten.add.Tensor({each}, %s{index - 1})\n"
    else:
        sums = f"%s1 = aten.add.Tensor({used[0]}, {used[1]})\n  %s2 = aten.add.Tensor({used[2]}, {used[3]})\n"
        sums += "  %s3 = aten.add.Tensor(%s1, %s2)\n"
    text = f"""# burnish 1
constant @words: f32[9, 8]
constant @kinds: f32[3, 8]
constant @positions: f32[1, 5, 8]
constant @scale: f32[8]
graph main(%tokens: i64[B, 5], %types: i64[B, 5]) {{
  %word = aten.embedding(@words, %tokens)
  %kind = aten.embedding(@kinds, %types)
  %place = aten.embedding(@kinds, %tokens)
  {sums}  %norm = aten.layer_norm(%s{count - 1}, normalized_shape=[8], weight=@scale)
  %out = aten.{"tanh" if post else "relu"}(%norm)
  return %out
}}"""
    fused = fuse(text)
    assert operators(fused)[0] == "burnish.embedding_layer_norm"
    assert len(operators(fused)) == 2


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_is_the_same_in_every_bit(dtype: str) -> None:
    text = f"""# burnish 1
constant @w: {dtype}[8, 8]
constant @more: {dtype}[8]
graph main(%a: {dtype}[B, 8], %b: {dtype}[B, 8]) {{
  %y = aten.linear(%b, @w, @more)
  %sum = aten.add.Tensor(%y, %a)
  %norm = aten.layer_norm(%sum, normalized_shape=[8])
  return %norm, %sum
}}"""
    fused = fuse(text, tolerance=0.0)
    assert operators(fused) == ["aten.linear", "burnish.skip_layer_norm", "getitem", "getitem"]


def test_one_embedding_looked_up_once_and_added_twice() -> None:
    text = """# burnish 1
constant @words: f32[9, 8]
graph main(%tokens: i64[B, 5]) {
  %word = aten.embedding(@words, %tokens)
  %sum = aten.add.Tensor(%word, %word)
  %norm = aten.layer_norm(%sum, normalized_shape=[8])
  return %norm
}"""
    assert operators(fuse(text)) == ["burnish.embedding_layer_norm"]
