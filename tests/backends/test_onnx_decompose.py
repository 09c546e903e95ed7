"""Operators that are taken apart before they are translated."""

import torch

from burnish.compiler.compile import compile_model
from burnish.compiler.numerics import drift
from burnish.compiler.program import Program

# Every constant of a text has the one value that stands for its type.
TEXT = """# burnish 1
constant @weight: f32[4]
constant @bias: f32[4]
constant @mean: f32[4]
constant @var: f32[4]
graph main(%x: f32[B, 4]) {
  %bn = aten.batch_norm(%x, @weight, @bias, @mean, @var, training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False) : f32[B, 4]
  return %bn
}
"""  # noqa: E501


def test_constants_of_one_type_are_told_apart() -> None:
    program = Program.parse(TEXT)
    program.constants["var"] = torch.full((4,), 3.0)
    x = torch.randn(5, 4)
    compiled = compile_model(program, "", backend="onnx", verify=0, progress=False)
    assert drift(compiled(x), program(x)) < 1e-5
