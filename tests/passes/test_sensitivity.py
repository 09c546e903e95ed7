"""sensitivity: each quantizer alone, against Programs quantized by hand, and what follows from its table."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import burnish
from burnish import Program
from burnish.passes.quantization.quantizers import quantizers, with_only

_PASSES = "canonicalize,fold-batch-norm,fold-constants,cse,dce,fuse,dce"


class _Net(nn.Module):
    """The second convolution has a weight of which one element is far larger than the others of its row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.Conv2d(16, 16, 3, padding=1)
        self.conv3, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)
        with torch.no_grad():
            self.conv2.weight[:, 0, 0, 0] = 200 * self.conv2.weight.abs().max()
            self.conv2.bias[:] = 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = x + torch.relu(self.conv3(torch.tanh(self.conv2(x))))
        return self.head(x.mean((2, 3)))


_X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _compiled(passes: str, model: nn.Module | None = None) -> burnish.Compiled:
    model = _Net().eval() if model is None else model
    return burnish.compile(model, f"{_PASSES},{passes}", inputs=(_X[:2],), calibration=[_X], verify=0)


def _metric(model: nn.Module) -> Any:
    with torch.no_grad():
        expected = model(_X)
    return lambda program: -torch.nn.functional.mse_loss(program(_X), expected) / expected.var()


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_finds_the_weight_that_hurts(preset: str) -> None:
    model = _Net().eval()
    program = _compiled(f"quantize{{preset={preset}}}", model).program
    before = program.print()
    found = burnish.sensitivity(program, _metric(model))
    assert program.print() == before
    # Nothing quantized is the model itself: biases are as they were too.
    assert abs(found.unquantized) < 1e-9
    assert found.quantized < -1e-5
    assert found.rows[0].name == "conv2.weight" and found.rows[0].kind == "weight"
    assert found.rows[0].drop > 3 * found.rows[1].drop
    weights = [row.name for row in found.rows if row.kind == "weight"]
    assert sorted(weights) == ["conv1.weight", "conv2.weight", "conv3.weight", "head.weight"]
    assert {row.name for row in found.rows if row.kind == "activation"} >= {"x"}
    assert all(row.drop == found.unquantized - row.metric for row in found.rows)
    kept = _compiled(f"quantize{{preset={preset},keep=[{','.join(found.keep(1))}]}}", model).program
    assert _metric(model)(kept) > found.quantized / 2


def test_a_weight_alone_is_its_integers_in_the_float_model() -> None:
    model = _Net().eval()
    program = _compiled("quantize{preset=fast}", model).program
    every = quantizers(program)
    only = [each for each in every if each.name == "conv3.weight"]
    found = with_only(program, every, only)(_X)
    held = program.constants
    scales = held["conv3.weight.scales"].reshape(-1, 1, 1, 1)
    with torch.no_grad():
        model.conv3.weight.copy_(held["conv3.weight.integers"] * scales)
        assert torch.allclose(found, model(_X), rtol=1e-4, atol=1e-6)


def test_an_activation_alone() -> None:
    model = _Net().eval()
    program = _compiled("quantize", model).program
    every = quantizers(program)
    found = with_only(program, every, [each for each in every if each.name == "x"])
    assert found.print().count(".quantize_per_tensor(") == 1 and ".dequantize_per_channel(" not in found.print()
    line = next(line for line in found.print().splitlines() if ".quantize_per_tensor(" in line)
    scale, zero_point = (float(line.partition(f"{name}=")[2].partition(",")[0]) for name in ("scale", "zero_point"))
    rounded = (((_X / scale).round() + zero_point).clamp(0, 255) - zero_point) * scale
    with torch.no_grad():
        assert torch.allclose(found(_X), model(rounded), rtol=1e-4, atol=1e-5)


def test_by_layer() -> None:
    model = _Net().eval()
    program = _compiled("quantize", model).program
    found = burnish.sensitivity(program, _metric(model), by="layer")
    assert found.rows[0].name == "conv2.weight" and found.rows[0].kind == "layer"
    assert found.keep(1) == ("conv2.weight",)
    assert {"conv1.weight", "conv2.weight", "conv3.weight", "head.weight"} <= {row.name for row in found.rows}
    assert "add" in {operator for row in found.rows for operator in row.operators}


def test_what_is_kept_has_no_quantizer_any_more() -> None:
    model = _Net().eval()
    found = burnish.sensitivity(_compiled("quantize", model).program, _metric(model))
    kept = {row.name: row.keep for row in found.rows if row.kind == "activation"}
    assert kept["x"] == ("conv1.weight",)
    # The pool's integer kernel gives integers: it has to stay float too.
    assert kept["mean"] == ("head.weight", "mean")
    for name in ("x", "mean", "add"):
        program = _compiled(f"quantize{{keep=[{','.join(kept[name])}]}}", model).program
        assert name not in {each.name for each in quantizers(program)}


def test_dynamic_pairs() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 16)).eval(), torch.randn(8, 32)
    program = burnish.compile(model, f"{_PASSES},quantize-dynamic", inputs=(x,), verify=0).program
    expected = model(x).detach()
    found = burnish.sensitivity(program, lambda run: -float((run(x) - expected).abs().max()))
    assert abs(found.unquantized) < 1e-6
    assert [row.kind for row in found.rows].count("activation") == 2
    assert [row.kind for row in found.rows].count("weight") == 2
    every = quantizers(program)
    assert "quantized_decomposed" not in with_only(program, every, ()).print()


@pytest.mark.parametrize("passes", ["quantize", "quantize{preset=accurate}", "quantize-dynamic"])
def test_of_a_transformer(passes: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    # Norms that let equalization and smoothing find something to move.
    nn.init.normal_(layer.norm1.weight, 1, 0.8)
    model, x = nn.Sequential(layer, nn.Linear(32, 16, bias=False)).eval(), torch.randn(8, 5, 32)
    compiled = burnish.compile(model, f"{_PASSES},{passes}", inputs=(x[:2],), calibration=[x], verify=0)
    expected = model(x).detach()
    found = burnish.sensitivity(compiled.program, lambda run: -float((run(x) - expected).abs().max()), by="layer")
    assert abs(found.unquantized) < 1e-5 < -found.quantized
    assert not found.notes
    # Attention's two projections, the two of the feed-forward part, and the head.
    assert len([row for row in found.rows if "linear" in " ".join(row.operators)]) == 5


def test_floats_that_are_gone(tmp_path: Path) -> None:
    model = _Net().eval()
    _compiled("quantize", model).program.save(tmp_path / "m.burnish")
    program = Program.load(tmp_path / "m.burnish")
    found = burnish.sensitivity(program, _metric(model))
    assert {row.kind for row in found.rows} == {"activation"}
    assert found.unquantized < -1e-5
    assert "are integers in every run, as their floats are gone: " in str(found)


def test_table_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Net().eval()
    found = burnish.sensitivity(_compiled("quantize", model).program, _metric(model))
    lines = str(found).splitlines()
    assert lines[0].split() == ["drop", "metric", "kind", "name", "read", "by"]
    assert lines[1].split()[2:] == ["weight", "conv2.weight", "conv2d"]
    assert len(lines) == len(found.rows) + 2
    assert found.table(most=2).splitlines()[3] == f"... and {len(found.rows) - 2} more"
    found.plot(tmp_path / "s.svg")
    assert "conv2.weight" in (tmp_path / "s.svg").read_text()
    found.plot(tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(burnish.OptionError, match=r"a plot ends in \.svg"):
        found.plot(tmp_path / "s.gif")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(burnish.MissingDependencyError, match=r"pip install 'burnish\[plot\]'"):
        found.plot(tmp_path / "s.svg")


def test_bad_use() -> None:
    model = _Net().eval()
    program = _compiled("quantize", model).program
    with pytest.raises(burnish.InputError, match="has no quantizer to bypass"):
        burnish.sensitivity(burnish.capture(model, (_X,)), _metric(model))
    with pytest.raises(burnish.InputError, match=r"takes a Program, not a _Net: give it compiled\.program"):
        burnish.sensitivity(model, _metric(model))  # type: ignore[arg-type]
    with pytest.raises(burnish.InputError, match="must return a number, but returned a str"):
        burnish.sensitivity(program, lambda run: "good")
    with pytest.raises(burnish.InputError, match="must return a finite number, but returned nan"):
        burnish.sensitivity(program, lambda run: float("nan"))
    with pytest.raises(burnish.OptionError, match="by must be"):
        burnish.sensitivity(program, _metric(model), by="node")  # type: ignore[arg-type]
    found = burnish.sensitivity(program, lambda run: 0.0)
    with pytest.raises(burnish.OptionError, match="either count"):
        found.keep()
    assert found.keep(max_drop=0.0) == ()
