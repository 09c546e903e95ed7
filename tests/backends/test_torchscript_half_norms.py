"""Layer norms between casts run on half precision, with the result that the casts would give."""

from __future__ import annotations

import pytest
import torch

from burnish.backends.torchscript import TorchScriptBackend
from burnish.backends.torchscript.half_norms import spare_casts_of_norms
from burnish.compiler.numerics import drift
from burnish.compiler.program import Program

BACKEND = TorchScriptBackend()
NORM = """\
  %x.f32 = aten.to.dtype(%x, dtype=f32) : f32[B, 5, 64]
  %norm = aten.layer_norm(%x.f32, normalized_shape=[64], weight=@g, bias=@b) : f32[B, 5, 64]
"""
BACK = "  %y = aten.to.dtype(%norm, dtype={half}) : {half}[B, 5, 64]\n"


def program(body: str, results: str, half: str = "bf16") -> Program:
    text = f"""# burnish 1
constant @g: f32[64]
constant @b: f32[64]
graph main(%x: {half}[B, 5, 64]) {{
{body.replace("{half}", half)}  return {results}
}}
"""
    return Program.parse(text)


@pytest.mark.parametrize("half", ["bf16", "f16"])
def test_the_casts_are_gone_and_the_numbers_stay(half: str) -> None:
    before = program(NORM + BACK, "%y", half)
    after = spare_casts_of_norms(before)
    assert [str(node.target) for node in after.graphs["main"].nodes if node.op == "call_function"] == [
        "aten.layer_norm.default"
    ]
    artifact = BACKEND.emit(before, {})
    assert artifact.node_count() == 1
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[half]
    for scale in (1.0, 1e-3, 300.0):
        x = (torch.randn(7, 5, 64) * scale + scale).to(dtype)
        actual, expected = artifact(x), before(x)
        assert actual.dtype == dtype
        # Both are rounded once, from float32 that differ in the order of sums.
        assert drift(actual.float(), expected.float()) <= torch.finfo(dtype).eps
        assert (actual != expected).float().mean() < 1e-2
    x[0, 0, 0], x[1, 1, 1] = float("nan"), float("inf")
    assert torch.equal(artifact(x).isnan(), before(x).isnan())


def test_an_input_that_is_read_in_float32_as_well_keeps_its_cast() -> None:
    body = NORM + BACK + "  %sum = aten.sum(%x.f32) : f32[]\n"
    after = BACKEND.emit(program(body, "%y, %sum"), {})
    assert after.node_count() == 3
    x = torch.randn(3, 5, 64).bfloat16()
    for actual, expected in zip(after(x), program(body, "%y, %sum")(x), strict=True):
        assert drift(actual.float(), expected.float()) <= 1e-2


@pytest.mark.parametrize(
    ("body", "results"),
    [
        (NORM, "%norm"),
        (NORM + BACK, "%y, %norm"),
        (NORM + BACK + "  %z = aten.to.dtype(%norm, dtype=f16) : f16[B, 5, 64]\n", "%y, %z"),
        (NORM + "  %z = aten.to.dtype(%norm, dtype=f16) : f16[B, 5, 64]\n", "%z"),
    ],
    ids=["result", "read in float32 as well", "two types", "another type"],
)
def test_left_as_they_are(body: str, results: str) -> None:
    before = program(body, results)
    assert spare_casts_of_norms(before) is before


def test_an_integer_is_not_half_precision() -> None:
    before = Program.parse(
        """# burnish 1
graph main(%x: i64[B, 8]) {
  %x.f32 = aten.to.dtype(%x, dtype=f32) : f32[B, 8]
  %norm = aten.layer_norm(%x.f32, normalized_shape=[8]) : f32[B, 8]
  %y = aten.to.dtype(%norm, dtype=i64) : i64[B, 8]
  return %y
}
"""
    )
    assert spare_casts_of_norms(before) is before
