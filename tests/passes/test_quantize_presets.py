"""Presets of quantize: what bias correction takes off, where the correction goes, and what presets compose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.pipeline import PassRecord, run_pipeline


def _quantize(passes: str, model: nn.Module, data: torch.Tensor) -> tuple[Program, PassRecord]:
    program = burnish.capture(model.eval(), (data,))
    result, records = run_pipeline(Pipeline.parse(f"canonicalize,{passes}"), program, Context(calibration=[data]))
    return result, records[-1]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", ["conv", "grouped", "linear"])
def test_bias_correction_takes_off_the_mean_shift(kind: str, biased: bool) -> None:
    torch.manual_seed(0)
    layers = {
        "conv": nn.Conv2d(16, 16, 3, bias=biased),
        "grouped": nn.Conv2d(16, 32, 1, groups=4, bias=biased),
        "linear": nn.Linear(16, 32, bias=biased),
    }
    shape = (4, 9, 16) if kind == "linear" else (4, 16, 9, 9)
    model, x = layers[kind], torch.rand(shape) * 2 + 1
    errors = []
    for corrects in ("false", "true"):
        program, _ = _quantize(f"quantize{{bits=4,correct_biases={corrects}}}", model, x)
        with torch.no_grad():
            off = program(x) - model(x)
        channel = -1 if kind == "linear" else 1
        errors.append(float(off.movedim(channel, 0).flatten(1).mean(1).abs().mean()))
    assert errors[0] > 5 * errors[1]


def test_a_norm_behind_takes_the_correction() -> None:
    program = Program.parse("""# burnish 1
# facts: canonical
constant @w: f32[16, 16]
graph main(%x: f32[B, 5, 16]) {
  %y = aten.linear(%x, @w)
  %n = burnish.skip_layer_norm(%y, %x, None, [16])
  %a = getitem(%n, 0)
  return %a
}
""")
    context = Context(calibration=[torch.rand(4, 5, 16)])
    quantized = run_pipeline(Pipeline.parse("quantize"), program, context, verify=3)[0]
    text = quantized.print()
    assert "burnish.skip_layer_norm(%y, %x, @n.input_bias" in text
    assert "%y = aten.linear(%x.dequantize, %w.dequantize)" in text


def test_what_presets_are() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)), torch.randn(8, 16) * 3

    def text(passes: str) -> str:
        return "".join(line for line in _quantize(passes, model, x)[0].print().splitlines() if line[0] != "#")

    fast, balanced = text("quantize{preset=fast}"), text("quantize{observer=mse,correct_biases=true}")
    assert fast == text("quantize{observer=min-max,correct_biases=false}")
    assert balanced == text("quantize") == text("quantize{preset=fast,observer=mse,correct_biases=true}")
    accurate, record = _quantize("quantize{preset=accurate}", model, x)
    assert record.rules["smooth-quant"] == 1
    separate, _ = _quantize("smooth-quant,quantize", model, x)
    assert torch.equal(accurate(x), separate(x))
    assert not torch.equal(accurate(x), _quantize("quantize", model, x)[0](x))


def test_accurate_levels_ranges_only_for_one_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1))
    x = torch.randn(2, 16, 6, 6)
    assert "equalize" not in _quantize("quantize{preset=accurate}", model, x)[1].rules
    assert _quantize("quantize{preset=accurate,granularity=tensor}", model, x)[1].rules["equalize"] == 1
