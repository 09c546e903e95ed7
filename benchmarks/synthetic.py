"""Stacks of any number of nodes: what a compiler meets in a very deep network, made without tracing one."""

from __future__ import annotations

from burnish import Program

__all__ = ["stack", "stack_text", "transformer"]

_BLOCK = """\
  %block{i}.fc = aten.linear(%{x}, @weight, @bias) : f32[B, 8]
  %block{i}.act = aten.relu(%block{i}.fc) : f32[B, 8]
  %block{i}.twin = aten.relu(%block{i}.fc) : f32[B, 8]
  %block{i}.drop = aten.dropout(%block{i}.act, p=0.1, train=False) : f32[B, 8]
  %block{i}.view = aten.view(%block{i}.drop, size=[-1, 8]) : f32[B, 8]
  %block{i}.dead = aten.mul.Tensor(%block{i}.view, %block{i}.twin) : f32[B, 8]
  %block{i}.mix = aten.add.Tensor(%block{i}.view, %block{i}.twin) : f32[B, 8]
  %block{i}.norm = aten.layer_norm(%block{i}.mix, normalized_shape=[8]) : f32[B, 8]
  %block{i}.scale = aten.mul.Tensor(%block{i}.norm, other=0.5) : f32[B, 8]
  %block{i}.out = aten.add.Tensor(%{x}, %block{i}.scale) : f32[B, 8]
"""
NODES_PER_BLOCK = 10


def stack_text(nodes: int) -> str:
    """Return the text of a residual stack of about `nodes` nodes: a tenth dead, a tenth doubled, two tenths no-ops."""
    blocks = max(1, nodes // NODES_PER_BLOCK)
    body = [_BLOCK.format(i=index, x=f"block{index - 1}.out" if index else "x") for index in range(blocks)]
    head = "# burnish 1\nconstant @weight: f32[8, 8]\nconstant @bias: f32[8]\ngraph main(%x: f32[B, 8]) {\n"
    return f"{head}{''.join(body)}  return %block{blocks - 1}.out\n}}\n"


def stack(nodes: int) -> Program:
    """Return `stack_text(nodes)` as a Program."""
    return Program.parse(stack_text(nodes))


_LAYER = """\
  %layer{i}.ln = aten.layer_norm(%{x}, normalized_shape=[16], weight=@g, bias=@g) : f32[B, 7, 16]
  %layer{i}.q = aten.linear(%layer{i}.ln, @w{i}, @bi) : f32[B, 7, 16]
  %layer{i}.k = aten.linear(%layer{i}.ln, @w{i}, @bi) : f32[B, 7, 16]
  %layer{i}.v = aten.linear(%layer{i}.ln, @w{i}, @bi) : f32[B, 7, 16]
  %layer{i}.qr = aten.reshape(%layer{i}.q, shape=[-1, 7, 4, 4]) : f32[B, 7, 4, 4]
  %layer{i}.kr = aten.reshape(%layer{i}.k, shape=[-1, 7, 4, 4]) : f32[B, 7, 4, 4]
  %layer{i}.vr = aten.reshape(%layer{i}.v, shape=[-1, 7, 4, 4]) : f32[B, 7, 4, 4]
  %layer{i}.qt = aten.permute(%layer{i}.qr, dims=[0, 2, 1, 3]) : f32[B, 4, 7, 4]
  %layer{i}.kt = aten.permute(%layer{i}.kr, dims=[0, 2, 3, 1]) : f32[B, 4, 4, 7]
  %layer{i}.vt = aten.permute(%layer{i}.vr, dims=[0, 2, 1, 3]) : f32[B, 4, 7, 4]
  %layer{i}.s = aten.matmul(%layer{i}.qt, %layer{i}.kt) : f32[B, 4, 7, 7]
  %layer{i}.sc = aten.mul.Tensor(%layer{i}.s, 0.5) : f32[B, 4, 7, 7]
  %layer{i}.p = aten.softmax.int(%layer{i}.sc, dim=-1) : f32[B, 4, 7, 7]
  %layer{i}.a = aten.matmul(%layer{i}.p, %layer{i}.vt) : f32[B, 4, 7, 4]
  %layer{i}.at = aten.permute(%layer{i}.a, dims=[0, 2, 1, 3]) : f32[B, 7, 4, 4]
  %layer{i}.ar = aten.reshape(%layer{i}.at, shape=[-1, 7, 16]) : f32[B, 7, 16]
  %layer{i}.o = aten.linear(%layer{i}.ar, @w{i}, @bi) : f32[B, 7, 16]
  %layer{i}.r = aten.add.Tensor(%layer{i}.o, %{x}) : f32[B, 7, 16]
  %layer{i}.f = aten.linear(%layer{i}.r, @w{i}, @bi) : f32[B, 7, 16]
  %layer{i}.e = aten.mul.Tensor(%layer{i}.f, 0.7071067811865476) : f32[B, 7, 16]
  %layer{i}.er = aten.erf(%layer{i}.e) : f32[B, 7, 16]
  %layer{i}.e1 = aten.add.Tensor(%layer{i}.er, 1) : f32[B, 7, 16]
  %layer{i}.eh = aten.mul.Tensor(%layer{i}.f, 0.5) : f32[B, 7, 16]
  %layer{i}.g = aten.mul.Tensor(%layer{i}.eh, %layer{i}.e1) : f32[B, 7, 16]
  %layer{i}.out = aten.add.Tensor(%layer{i}.g, %layer{i}.r) : f32[B, 7, 16]
"""
_NODES_PER_LAYER = 25


def transformer(nodes: int) -> Program:
    """Return a transformer of about `nodes` nodes, spelled out as models write it: each node belongs to a pattern."""
    layers = max(1, nodes // _NODES_PER_LAYER)
    weights = "".join(f"constant @w{index}: f32[16, 16]\n" for index in range(layers))
    body = [_LAYER.format(i=index, x=f"layer{index - 1}.out" if index else "x") for index in range(layers)]
    head = f"# burnish 1\n# facts: canonical\nconstant @g: f32[16]\nconstant @bi: f32[16]\n{weights}"
    return Program.parse(
        f"{head}graph main(%x: f32[B, 7, 16]) {{\n{''.join(body)}  return %layer{layers - 1}.out\n}}\n"
    )
