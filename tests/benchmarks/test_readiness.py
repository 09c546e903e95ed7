"""The benchmark of readiness gives clean rows, and says what it found of the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import burnish
from benchmarks.models import Entry
from burnish.backends.onnx import OnnxBackend
from burnish.backends.readiness import Target

pytest.importorskip("polygraphy", reason="the benchmark lints with Polygraphy: pip install 'burnish[dev]'")

from benchmarks.readiness import ALLOWED, PIPELINES, Outcome, examine


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


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def entry(model: nn.Module) -> Entry:
    return Entry("small", "test", lambda: model, lambda batch: (torch.randn(batch, 16, 8, 8),))


def examined(model: nn.Module, target: str, *steps: str) -> dict[str, Outcome]:
    return examine(entry(model), Target.parse(target), list(steps)).outcomes


def test_a_clean_model_passes_in_every_type() -> None:
    found = examined(Narrow(), "tensorrt-11", *PIPELINES)
    for step, outcome in found.items():
        assert (outcome.found, outcome.lint, outcome.failure) == ([], [], "")
        assert outcome.agrees(step)
    # The file in half precision is the Program's, not the model's.
    assert found["float32"].from_model < 1e-6 < found["float16"].from_model < ALLOWED["float16"]


def test_what_is_found_is_told() -> None:
    outcome = examined(Wide(), "tensorrt-11", "float32")["float32"]
    assert outcome.found == ["Cast: TensorRT has no float64: it computes in float32, and clamps what does not fit"]
    assert outcome.agrees("float32")
    outcome = examined(Unknown(), "onnxruntime", "float32")["float32"]
    assert "neither a translation to ONNX nor a decomposition" in outcome.found[0]
    assert not outcome.agrees("float32")


def test_random_numbers_are_not_compared() -> None:
    outcome = examined(Noise(), "tensorrt-11", "float32")["float32"]
    assert outcome.failure == "not compared: it draws random numbers"
    assert not outcome.agrees("float32")


def test_a_file_that_computes_something_else_does_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    right = OnnxBackend.emit

    def wrong(self: OnnxBackend, program: burnish.Program, options: dict[str, object]) -> object:
        artifact = right(self, program, options)
        next(node for node in artifact.model.graph.graph.node if node.op_type == "Relu").op_type = "Neg"
        return artifact

    monkeypatch.setattr(OnnxBackend, "emit", wrong)
    for outcome in examined(Narrow(), "tensorrt-11", *PIPELINES).values():
        assert (outcome.found, outcome.failure) == ([], "")
        assert outcome.drift > 1e-2
