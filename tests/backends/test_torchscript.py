"""The torchscript backend computes what the model computes, at any batch size, also after saving."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree

from burnish.backends.torchscript import TorchScriptArtifact, TorchScriptBackend
from burnish.compiler.capture import capture
from burnish.compiler.numerics import worst_drift
from burnish.compiler.program import Program
from burnish.compiler.structure import Leaf
from tests.backends.torchscript_models import SMALL, TRANSFORMERS, Counting, Function, Inputs

BACKEND = TorchScriptBackend()
BATCHES = (1, 2, 3, 17)


def captured(model: torch.nn.Module, inputs: Inputs) -> Program:
    args, kwargs = inputs(2)
    names = inspect.signature(model.forward).parameters
    return capture(model, args if not kwargs else {**dict(zip(names, args, strict=False)), **kwargs})


def assert_same(artifact: TorchScriptArtifact, model: torch.nn.Module, inputs: Inputs) -> None:
    for batch in BATCHES:
        # Thrice: TorchScript profiles the first call, specializes at the second and runs the result at the third.
        for _ in range(3):
            args, kwargs = inputs(batch)
            with torch.no_grad():
                expected = model(*args, **kwargs)
            actual = artifact(*args, **kwargs)
            assert pytree.tree_structure(actual) == pytree.tree_structure(expected)
            assert worst_drift(pytree.tree_leaves(actual), pytree.tree_leaves(expected)) <= 1e-5, batch


@pytest.mark.parametrize("name", SMALL)
def test_small_models(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = SMALL[name]()
    program = captured(model, inputs)
    assert BACKEND.check(program) == []
    assert_same(BACKEND.emit(program, {}), model, inputs)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = TRANSFORMERS[name]()
    program = captured(model, inputs)
    assert BACKEND.check(program) == []
    assert_same(BACKEND.emit(program, {}), model, inputs)


def test_a_file_runs_in_plain_pytorch(tmp_path: Path) -> None:
    for name in ("cnn", "early-exit", "recurrent", "various"):
        torch.manual_seed(0)
        model, inputs = SMALL[name]()
        artifact = BACKEND.emit(captured(model, inputs), {})
        artifact.save(tmp_path / f"{name}.pt")
        for batch in BATCHES:
            args, _ = inputs(batch)
            with torch.no_grad():
                expected = pytree.tree_leaves(model(*args))
            torch.save((args, expected), tmp_path / f"{name}.{batch}.data")
    script = """
import sys, pathlib, torch
for file in pathlib.Path(sys.argv[1]).glob("*.pt"):
    model = torch.jit.load(str(file))
    for data in file.parent.glob(file.stem + ".*.data"):
        args, expected = torch.load(data)
        for _ in range(3):
            actual = model(*args)
            actual = list(actual) if isinstance(actual, tuple) else [actual]
            expected = [each for each in expected if each is not None]
            assert len(actual) == len(expected) > 0
            for a, e in zip(actual, expected):
                assert a.dtype == e.dtype
                torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)
        print(data.name)
assert not [name for name in sys.modules if "burnish" in name]
"""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path)],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 4 * len(BATCHES)


def test_buffers_are_updated_and_saved(tmp_path: Path) -> None:
    model = Counting()
    x = torch.ones(2, 2)
    artifact = BACKEND.emit(capture(model, (x,)), {})
    before = model.a.clone()
    for _ in range(3):
        assert worst_drift(artifact(x), model(x)) == 0.0
    assert torch.equal(before, torch.tensor([1.0, 2.0]))
    artifact.save(tmp_path / "model.pt")
    loaded = BACKEND.load(tmp_path / "model.pt", {})
    expected = model(x)
    assert worst_drift(loaded(x), expected) == 0.0
    assert worst_drift(artifact(x), expected) == 0.0
    loaded.reset()
    assert worst_drift(loaded(x), expected) == 0.0
    artifact.reset()
    assert artifact(x)[2] == 1
    loaded.benchmark((x,), seconds=0.01)
    loaded.profile((x,))
    assert worst_drift(loaded(x), model(x)) == 0.0


def test_the_artifact_does_not_share_the_weights() -> None:
    model = torch.nn.Linear(3, 3)
    x = torch.randn(2, 3)
    artifact = BACKEND.emit(capture(model, (x,)), {})
    expected = model(x).detach()
    with torch.no_grad():
        model.weight.zero_()
    torch.testing.assert_close(artifact(x), expected)


def test_no_deprecation_warning_reaches_the_user(tmp_path: Path) -> None:
    program = capture(torch.nn.Linear(3, 3), (torch.randn(2, 3),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        artifact = BACKEND.emit(program, {})
        artifact.save(tmp_path / "model.pt")
        BACKEND.load(tmp_path / "model.pt", {})(torch.randn(5, 3))


def test_global_settings_stay() -> None:
    def settings() -> tuple[Any, ...]:
        jit = torch._C
        return jit._jit_texpr_fuser_enabled(), jit._get_graph_executor_optimize(), torch.get_num_threads()

    before = settings()
    BACKEND.emit(capture(torch.nn.Linear(3, 3), (torch.randn(2, 3),)), {})(torch.randn(5, 3))
    assert settings() == before


def test_a_program_with_two_stages() -> None:
    torch.manual_seed(0)
    program = capture(Function(lambda x: (x.relu() * 2).sin()), (torch.randn(2, 3),))
    second = capture(Function(lambda x: x.cos() + x.shape[0]), (torch.randn(2, 3),))
    graph = second.graphs["main"]
    (entry,) = graph.find_nodes(op="placeholder")
    entry.target = "output"
    result = graph.output_node()
    result.args = ({"final": result.args[0]["output"]},)
    program.graphs["second"] = graph
    program.signature = replace(program.signature, outputs=Leaf("final"))
    artifact = BACKEND.emit(program, {})
    for batch in BATCHES:
        x = torch.randn(batch, 3)
        torch.testing.assert_close(artifact(x), (x.relu() * 2).sin().cos() + batch)


@pytest.mark.slow
def test_a_graph_of_ten_thousand_nodes() -> None:
    lines = ["# burnish 1", "constant @w: f32[8]", "graph main(%x: f32[B, 8]) {"]
    for index in range(10_000):
        operator, before = ("mul", "sub")[index % 2], f"l{index - 1}.y" if index else "x"
        lines.append(f"  %l{index}.y = aten.{operator}.Tensor(%{before}, @w) : f32[B, 8]")
    program = Program.parse("\n".join([*lines, "  return %l9999.y", "}", ""]))
    program.constants["w"] = torch.linspace(0.9, 1.1, 8)
    artifact = BACKEND.emit(program, {})
    for batch in (2, 3):
        x = torch.randn(batch, 8)
        torch.testing.assert_close(artifact(x), program(x))


def test_a_view_in_another_type_is_refused_by_name() -> None:
    class Bits(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(torch.int32)

    (finding,) = TorchScriptBackend().check(capture(Bits(), (torch.randn(2, 4),)))
    assert "TorchScript does not find this overload" in str(finding)
