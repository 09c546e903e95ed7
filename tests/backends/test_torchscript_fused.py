"""Fused operators in TorchScript: layers in place, all others inlined, and files that torch alone runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import burnish
from burnish.backends.torchscript import TorchScriptBackend
from burnish.compiler.compile import compile_model
from burnish.compiler.context import Context
from burnish.compiler.numerics import worst_drift
from burnish.compiler.pipeline import Pipeline, run_pipeline
from burnish.compiler.program import Program
from tests.compiler.fused_programs import CALLS, program_of
from tests.compiler.test_inlining import resized

BACKEND = TorchScriptBackend()
_leaves = torch.utils._pytree.tree_leaves


@pytest.mark.parametrize("name", CALLS)
def test_every_operator_at_every_size(name: str) -> None:
    program = program_of(name)
    assert BACKEND.check(program) == []
    artifact = BACKEND.emit(program, {})
    # Layers run on other kernels than the program's: in another order of summation.
    allowed = 1e-6 if name.startswith(("conv", "linear", "self attention")) else 0.0
    for batch in (1, 3, 1):
        inputs = resized(program, batch)
        before = {key: value.clone() for key, value in inputs.items()}
        assert worst_drift(_leaves(artifact(**inputs)), _leaves(program(**inputs))) <= allowed
        assert worst_drift(inputs.values(), before.values()) == 0.0


ACTIVATIONS = {
    "none": [], "relu": [], "sigmoid": [], "tanh": [], "silu": [], "gelu": [], "gelu_tanh": [], "hardswish": [],
    "hardsigmoid": [], "leaky_relu": [-0.5], "clamp": [-0.25, float("inf")],
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_in_place(activation: str, dtype: str) -> None:
    program = Program.parse(
        f"""# burnish 1
constant @w: {dtype}[4, 4]
graph main(%x: {dtype}[B, 4], %r: {dtype}[B, 4]) {{
  %out = burnish.linear_act(%x, @w, residual=%r, activation="{activation}", parameters={ACTIVATIONS[activation]})
  return %out
}}
"""
    )
    artifact = BACKEND.emit(program, {})
    x, r = (torch.randn(3, 4, dtype=next(iter(program.constants.values())).dtype) for _ in range(2))
    x[0, 0] = float("nan")
    kept = r.clone()
    for _ in range(3):
        assert worst_drift(_leaves(artifact(x, r)), _leaves(program(x, r))) <= (1e-6 if dtype == "f32" else 0.0)
        with torch.backends.mkldnn.flags(enabled=False):
            # The same layer on both sides: what is done in place is exact.
            assert worst_drift(_leaves(artifact(x, r)), _leaves(program(x, r))) == 0.0
    assert torch.equal(r, kept)
    assert artifact.node_count() == 2 + (activation != "none")


def test_constants_are_not_written_to() -> None:
    """A layer of constants alone is computed once, and its activation is not applied again at each call."""
    program = Program.parse(
        """# burnish 1
constant @w: f32[4, 4]
constant @c: f32[2, 4]
graph main(%x: f32[2, 4]) {
  %fc = burnish.linear_act(@c, @w, residual=@c, activation="gelu")
  %out = aten.add.Tensor(%fc, %x)
  return %out
}
"""
    )
    artifact, x = BACKEND.emit(program, {}), torch.randn(2, 4)
    for _ in range(4):
        assert worst_drift(_leaves(artifact(x)), _leaves(program(x))) <= 1e-6


@pytest.mark.parametrize(
    "line", ["%x: i64[B, 4]) {\n  %out = burnish.linear_act(%x, @i, activation='sigmoid')",
             "%x: f32[B, 4], %r: f32[4]) {\n  %out = burnish.linear_act(%x, @w, residual=%r, activation='relu')",
             "%x: f32[B, 4], %r: f64[B, 4]) {\n  %out = burnish.linear_act(%x, @w, residual=%r)"],
)  # fmt: skip
def test_other_types_are_inlined(line: str) -> None:
    constant = "@i: i64[4, 4]" if "@i" in line else "@w: f32[4, 4]"
    text = f"# burnish 1\nconstant {constant}\ngraph main({line}\n  return %out\n}}\n".replace("'", '"')
    program = Program.parse(text)
    artifact = BACKEND.emit(program, {})
    inputs = program.samples
    with torch.backends.mkldnn.flags(enabled=False):
        assert worst_drift(_leaves(artifact(**inputs)), _leaves(program(**inputs))) == 0.0
    assert worst_drift(_leaves(artifact(**inputs)), _leaves(program(**inputs))) <= 1e-6


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.fc = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x) + x)
        return torch.nn.functional.gelu(self.fc(x))


def test_file_runs_with_torch_alone(tmp_path: Path) -> None:
    model, x = _Net().eval(), torch.randn(2, 3, 8, 8)
    program, _ = run_pipeline(Pipeline.parse("canonicalize,fuse,dce"), burnish.capture(model, (x,)), Context())
    compiled = compile_model(program, "", backend="torchscript", verify=4, progress=False)
    compiled.save(tmp_path / "net.pt")
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import sys, torch\n"
        "y = torch.jit.load('net.pt')(torch.load('x.pt'))\n"
        "assert 'burnish' not in sys.modules\n"
        "torch.save(y, 'y.pt')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True)
    assert torch.equal(torch.load(tmp_path / "y.pt"), compiled.artifact.module(x))
    assert worst_drift([torch.load(tmp_path / "y.pt")], [compiled(x)]) <= 1e-6
