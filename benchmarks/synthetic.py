"""A stack of any number of nodes: what a compiler meets in a very deep network, made without tracing one."""

from __future__ import annotations

from burnish import Program

__all__ = ["stack", "stack_text"]

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
