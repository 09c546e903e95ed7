"""Programs that can be trained: gradients, masks, quantizers, statistics, recomputation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.constant_uses import is_parameter, uses_of
from burnish.compiler.trainable import Trainable
from burnish.passes.recovery.regrow import is_pattern


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)]
    model = nn.Sequential(*layers).eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def _inputs() -> torch.Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def _output(module: Trainable, *inputs: torch.Tensor) -> torch.Tensor:
    given = dict(zip(module.program.signature.input_names, inputs, strict=True))
    (found,) = module(**given).values()
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("passes", ["canonicalize", "canonicalize,fuse"])
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("statistics", [False, True])
def test_gradients_are_those_of_the_model(passes: str, segments: int, statistics: bool) -> None:
    model, x = _network(), _inputs()
    program = Pipeline.parse(passes).run(burnish.capture(model, (x,)), Context())
    module = Trainable(program, statistics=statistics, segments=segments).train(statistics)
    model.train(statistics)
    expected, found = model(x), _output(module, x)
    assert torch.allclose(found, expected, atol=1e-5)
    expected.square().sum().backward()
    module.backward(found.square().sum())
    wanted = dict(model.named_parameters())
    assert set(module.trained) == set(wanted)
    for name, value in module.trained.items():
        assert value.grad is not None
        assert torch.allclose(value.grad, wanted[name].grad, rtol=1e-3, atol=1e-4), name
    if statistics:
        # Computing again for gradients must not update them twice.
        for name, value in module.statistics.items():
            assert torch.allclose(value, dict(model.named_buffers())[name], atol=1e-5), name
    else:
        assert not module.statistics


def test_the_program_stays_as_it_is() -> None:
    program = Pipeline.parse("canonicalize").run(burnish.capture(_network(), (_inputs(),)), Context())
    before, weights = program.print(), {name: value.clone() for name, value in program.constants.items()}
    module = Trainable(program, statistics=True).train()
    with torch.no_grad():
        for value in module.trained.values():
            value.add_(1)
    module.backward(_output(module, _inputs()).sum())
    assert program.print() == before
    for name, value in program.constants.items():
        assert torch.equal(value, weights[name]), name


def test_frozen_constants_and_statistics() -> None:
    program = Pipeline.parse("canonicalize").run(burnish.capture(_network(), (_inputs(),)), Context())
    module = Trainable(program, frozen=frozenset({"0.weight", "1.running_mean"}), statistics=True)
    assert "0.weight" not in module.trained
    assert not module.statistics
    assert set(module.constants()) == set(module.trained)


_MASKED = """\
# burnish 1
constant @mask: b1[4, 3]
constant @w: f32[4, 3]
constant @table: f32[4]
graph main(%x: f32[B, 3]) {
  %m = aten.mul.Tensor(@w, @mask)
  %y = aten.linear(%x, %m)
  %z = aten.add.Tensor(%y, @table)
  return %z
}
"""


def test_masks_stop_gradients_and_tables_are_not_trained() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1]]).bool()
    program = Program.parse(_MASKED, {"mask": mask, "w": torch.randn(4, 3), "table": torch.randn(4)})
    uses = uses_of(program)
    assert [(use.operator, use.slot) for use in uses["w"]] == [("aten.linear", "weight")]
    assert is_parameter(uses["w"])
    assert not is_parameter(uses["table"])
    module = Trainable(program)
    assert set(module.trained) == {"w"}
    module.backward(_output(module, torch.randn(5, 3)).square().sum())
    gradient = module.trained["w"].grad
    assert gradient is not None
    assert torch.equal(gradient != 0, mask)


def _quantized() -> Program:
    data = [torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(index)) for index in range(4)]
    compiled = burnish.compile(
        _network(), "default,quantize", inputs=(_inputs(),), backend="torchscript", calibration=data
    )
    return compiled.program


def test_integers_stay_on_their_grids() -> None:
    program, x = _quantized(), _inputs()
    module = Trainable(program)
    integers = {name for name in module.trained if not program.constants[name].is_floating_point()}
    assert len([name for name in integers if program.constants[name].dtype == torch.int8]) == 2
    # Before any step it computes what the Program computes, and gives its integers back.
    assert torch.allclose(_output(module, x), program(x), atol=1e-5)
    for name, value in module.constants().items():
        assert value.dtype == program.constants[name].dtype
        assert torch.equal(value, program.constants[name]), name
    module.backward(_output(module, x).square().sum())
    for name in integers:
        gradient = module.trained[name].grad
        assert gradient is not None
        assert bool((gradient != 0).any()), name
    with torch.no_grad():
        for value in module.trained.values():
            value.add_(0.05 * value.abs().max() * torch.randn(value.shape))
    trained = program.copy()
    trained.constants.update(module.constants())
    assert torch.allclose(_output(module, x), trained(x), atol=1e-4)


def test_gradients_stop_where_a_quantizer_clips() -> None:
    text = """\
# burnish 1
constant @w: f32[1, 1]
graph main(%x: f32[B, 1]) {
  %y = aten.linear(%x, @w)
  %q = quantized_decomposed.quantize_per_tensor(%y, 0.1, 0, -128, 127, i8)
  %z = quantized_decomposed.dequantize_per_tensor(%q, 0.1, 0, -128, 127, i8)
  return %z
}
"""
    module = Trainable(Program.parse(text, {"w": torch.ones(1, 1)}))
    for value, expected in ((3.04, 3.04), (20.0, 0.0)):
        module.zero_grad()
        found = _output(module, torch.tensor([[value]]))
        module.backward(found.sum())
        gradient = module.trained["w"].grad
        assert gradient is not None
        assert found.item() == pytest.approx(min(round(value, 1), 12.7))
        assert float(gradient) == pytest.approx(expected)


def test_recomputation_needs_less_memory() -> None:
    layers = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(32)]
    program = Pipeline.parse("canonicalize").run(
        burnish.capture(nn.Sequential(*layers), (torch.randn(2, 64),)), Context()
    )

    def kept(segments: int) -> int:
        total = 0

        def pack(value: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += value.numel()
            return value

        module = Trainable(program, segments=segments)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            _output(module, torch.randn(1024, 64))
        return total

    # 32 layers keep 32 values each way; 8 segments keep what lies between them.
    assert kept(8) < kept(1) / 2


@pytest.mark.parametrize(("mask", "expected"), [("1100" * 8, True), ("1101" * 8, True), ("1100" * 7 + "1000", False)])
def test_patterns_of_masks(mask: str, expected: bool) -> None:
    assert is_pattern(torch.tensor([int(each) for each in mask]).bool().reshape(4, 8)) is expected
