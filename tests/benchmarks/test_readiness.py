"""The benchmark of readiness gives clean rows, and says what it found of the others."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.models import Entry
from benchmarks.readiness import PIPELINES, check
from burnish.backends.readiness import Target


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


class Wide(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double().exp().float()


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.median(-1).values


def entry(model: nn.Module) -> Entry:
    return Entry("small", "test", lambda: model, lambda batch: (torch.randn(batch, 16, 8, 8),))


def test_a_clean_model_passes_in_both_types() -> None:
    row = check(entry(Narrow()), Target.parse("tensorrt-11"), list(PIPELINES))
    assert row.found == {"float32": [], "int8": []}


def test_what_is_found_is_told() -> None:
    row = check(entry(Wide()), Target.parse("tensorrt-11"), ["float32"])
    assert row.found["float32"] == [
        "Cast: TensorRT has no float64: it computes in float32, and clamps what does not fit"
    ]
    row = check(entry(Unknown()), Target.parse("onnxruntime"), ["float32"])
    assert "neither a translation to ONNX nor a decomposition" in row.found["float32"][0]
