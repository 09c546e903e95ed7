"""Random graphs that are pruned, masked, trained and quantized, in random order: types hold, and backends agree.

What the result should be is the business of the oracle in `test_prune`; here passes meet each other.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.numerics import worst_drift
from tests.random_programs import programs

_SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
_BEFORE = ("canonicalize", "canonicalize,fold-constants,cse", "canonicalize,fold-batch-norm,fold-constants,fuse,dce")
_LOSSY = (
    "prune{ratio=0.5}",
    "prune{ratio=0.3,importance=random,ranking=global}",
    "prune{ratio=0.4,ranking=isomorphic,importance=fpgm,round_to=2}",
    "prune{ratio=0.5,kinds=[features,channels,heads,neurons],importance=lamp}",
    "prune{ratio=0.3,importance=taylor}",
    "prune-blocks{ratio=0.5}",
    "sparsify{ratio=0.6}",
    'sparsify{pattern="2:4"}',
    "recover{steps=2,distill=mse,learning_rate=1e-5}",
    "recover{steps=2,distill=mse,learning_rate=1e-5,segments=2,statistics=frozen}",
)
_AFTER = ("fold-constants", "fold-constants,fold-batch-norm,fuse,dce", "fold-constants,fuse,quantize{preset=fast}")


def _leaves(value: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(value)


def _x(program: Program, batch: int) -> torch.Tensor:
    shape = (batch, *program.samples["x"].shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(batch))


def _usable(program: Program) -> None:
    """Leave out graphs that give infinities, or values of which nothing is left: training has no step from there."""
    for batch in (2, 4):
        for each in _leaves(program(_x(program, batch))):
            assume(not each.is_floating_point() or bool((each.isfinite() & (each.abs() < 1e4)).all()))


_PIPELINES = st.tuples(st.sampled_from(_BEFORE), st.lists(st.sampled_from(_LOSSY), min_size=1, max_size=3))


def _run(program: Program, passes: str) -> Program:
    data = [_x(program, 4) for _ in range(2)]
    # The blocks' importance, taylor and training all read the data.
    return Pipeline.parse(passes).run(program, Context(calibration=data, progress=False), verify=3)


@given(text=programs(), parts=_PIPELINES)
@_SETTINGS
def test_passes_meet(text: str, parts: tuple[str, list[str]]) -> None:
    program = Program.parse(text)
    _usable(program)
    before, lossy = parts
    try:
        found = _run(program, ",".join([before, *lossy]))
    except burnish.PassError as error:
        # The only reasons that are the graph's own: nothing with gradients, or nothing finite.
        assume("depends on the weights" not in str(error) and "the loss is" not in str(error))
        raise
    for batch in (1, 3, 17):
        x = _x(program, batch)
        assert [each.shape for each in _leaves(found(x))] == [each.shape for each in _leaves(program(x))]
    assert Program.parse(found.print()).print() == found.print()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
@given(text=programs(), parts=_PIPELINES, after=st.sampled_from(_AFTER))
@settings(_SETTINGS, max_examples=6)
def test_backends_agree(backend: str, text: str, parts: tuple[str, list[str]], after: str) -> None:
    program = Program.parse(text)
    _usable(program)
    before, lossy = parts
    try:
        found = _run(program, ",".join([before, *lossy, after]))
    except burnish.PassError as error:
        assume("depends on the weights" not in str(error) and "the loss is" not in str(error))
        raise
    compiled = burnish.compile(found, "", backend=backend, verify=0, progress=False)
    for batch in (1, 3):
        x = _x(program, batch)
        drift = worst_drift(_leaves(compiled(x)), _leaves(found(x)))
        # Integers of two runtimes may fall on two sides of a half: a step of 1/255 of a range.
        assert drift <= (5e-2 if "quantize" in after else 1e-4)
