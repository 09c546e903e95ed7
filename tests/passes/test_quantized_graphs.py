"""Graphs that PT2E quantized: captured, canonical, and run by ONNX Runtime in integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import burnish
from burnish.compiler.numerics import worst_drift

pytest.importorskip("torchao")

from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

pytestmark = pytest.mark.filterwarnings("ignore")


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = torch.max_pool2d(x + self.conv2(x), 2)
        return self.head(x.mean((2, 3), keepdim=True).flatten(1))


class _Everything(Quantizer):
    """Inputs and results of layers and sums, with 7 or 8 bits; weights from -127 to 127, by channel in convolutions."""

    def __init__(self, highest: int) -> None:
        self.activations = QuantizationSpec(torch.uint8, HistogramObserver, 0, highest, torch.per_tensor_affine)
        by_channel, by_tensor = torch.per_channel_symmetric, torch.per_tensor_symmetric
        self.rows = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -127, 127, by_channel, ch_axis=0)
        self.whole = QuantizationSpec(torch.int8, MinMaxObserver, -127, 127, by_tensor)

    def annotate(self, model: Any) -> Any:
        for node in model.graph.nodes:
            name, act = str(node.target), self.activations
            if node.op != "call_function" or not any(each in name for each in ("conv2d", "linear", "add")):
                continue
            second = act if "add" in name else self.whole if "linear" in name else self.rows
            user = next(iter(node.users))
            limited = "relu" in str(user.target)
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                {node.args[0]: act, node.args[1]: second}, None if limited else act, _annotated=True
            )
            if limited:
                user.meta["quantization_annotation"] = QuantizationAnnotation(output_qspec=act, _annotated=True)
        return model

    def validate(self, model: Any) -> None:
        """Nothing to check."""


def _converted(quantizer: Any, x: torch.Tensor, fold: bool = True) -> Any:
    batch = {"x": {0: torch.export.Dim.DYNAMIC}}
    prepared = prepare_pt2e(torch.export.export(_Net().eval(), (x,), dynamic_shapes=batch).module(), quantizer)
    prepared(x)
    return convert_pt2e(prepared, fold_quantize=fold)


@pytest.mark.parametrize("highest", [127, 255])
@pytest.mark.parametrize("fold", [True, False])
def test_becomes_our_form_and_runs_in_integers(highest: int, fold: bool, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = _converted(_Everything(highest), x, fold)
    compiled = burnish.compile(model, inputs=(x,))
    # What the calibration data did not reach is clipped as before.
    more = 3 * torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    assert worst_drift([burnish.capture(model, (x,))(more)], [model(more)]) == 0
    assert worst_drift([compiled.program(more)], [model(more)]) == 0
    levels = model(more).unique()
    step = float((levels[1:] - levels[:-1]).min())
    assert float((compiled(more) - model(more)).abs().max()) <= 2.01 * step
    text = compiled.program.print()
    weights = [line for line in text.splitlines() if "= quantized_decomposed.dequantize_per_channel" in line]
    assert len(weights) == 3
    assert all("None, axis=0, quant_min=-128, quant_max=127, dtype=i8" in line for line in weights)
    assert "i64" not in text
    assert any("convolution 2 of 2, add 1 of 1" in note and "matmul 1 of 1" in note for note in compiled.report.notes)
    compiled.program.save(tmp_path / "m.burnish")
    assert burnish.Program.load(tmp_path / "m.burnish").print() == text


@pytest.mark.parametrize("dynamic", [False, True])
def test_of_x86_inductor(dynamic: bool) -> None:
    x = torch.randn(4, 3, 16, 16)
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    model = _converted(quantizer, x)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    for given in (model, exported):
        compiled = burnish.compile(given, inputs=(x,))
        assert worst_drift([compiled.program(x)], [model(x).detach()]) < 1e-6
        assert worst_drift([compiled(x)], [model(x).detach()]) < 0.02
    text = compiled.program.print()
    assert ("choose_qparams" in text) == dynamic
    # The pairs behind pooling and flattening have the numbers of those before.
    assert dynamic or text.count("quantized_decomposed.quantize_per_tensor") == 4


def test_prepared_graph_is_refused() -> None:
    x = torch.randn(4, 3, 16, 16)
    prepared = prepare_pt2e(torch.export.export(_Net().eval(), (x,)).module(), _Everything(255))
    with pytest.raises(burnish.CaptureError, match="not converted: call convert_pt2e"):
        burnish.capture(prepared, (x,))
