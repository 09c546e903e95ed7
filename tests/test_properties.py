"""Random legal pipelines over random graphs stay within their contracts, and every backend agrees with eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import burnish
from burnish import Pipeline, Program
from burnish.compiler.numerics import Exact, Reassociates, worst_drift
from tests.random_programs import pipelines, programs

_SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def leaves(value: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(value)


def joined(outputs: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.cat([each.flatten() for each in same]) for same in zip(*outputs, strict=True)]


@given(text=programs(), pipeline=pipelines())
@_SETTINGS
def test_every_pass_holds_its_contract(text: str, pipeline: Pipeline) -> None:
    program = Program.parse(text)
    optimized = pipeline.run(program, verify=4)
    reassociating = sum(not isinstance(each.numerics, Exact) for each in pipeline.flat())
    allowed = reassociating * max(
        (each.numerics.rtol for each in pipeline.flat() if isinstance(each.numerics, Reassociates)), default=0.0
    )
    # Sizes that no sample had: a pass that bakes a size in is found here. Together they have a scale that few elements
    # of a single sample, rounding left of a cancellation, have not.
    found, expected = [], []
    for batch in (1, 3, 17):
        shape = (batch, *program.samples["x"].shape[1:])
        x = torch.randn(shape, generator=torch.Generator().manual_seed(batch))
        found.append(leaves(optimized(x)))
        expected.append(leaves(program(x)))
        assert [each.shape for each in found[-1]] == [each.shape for each in expected[-1]]
    assert worst_drift(joined(found), joined(expected)) <= allowed


@given(text=programs())
@_SETTINGS
def test_text_and_file_round_trip(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    program = Program.parse(text)
    printed = program.print()
    assert Program.parse(printed).print() == printed
    path = tmp_path_factory.mktemp("programs") / "p.burnish"
    program.save(path)
    loaded = Program.load(path)
    assert loaded.print() == printed
    x = program.samples["x"]
    assert worst_drift(leaves(loaded(x)), leaves(program(x))) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
@given(text=programs())
@settings(_SETTINGS, max_examples=12)
def test_backends_agree_with_eager(backend: str, text: str) -> None:
    program = Program.parse(text)
    compiled = burnish.compile(program, backend=backend)
    for batch in (1, 3):
        x = torch.randn((batch, *program.samples["x"].shape[1:]), generator=torch.Generator().manual_seed(batch))
        assert worst_drift(leaves(compiled(x)), leaves(program(x))) <= 1e-4
