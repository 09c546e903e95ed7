"""fuse takes time linear in the nodes of a model whose every node belongs to a pattern."""

from __future__ import annotations

import gc
import time

import pytest

from benchmarks.synthetic import transformer
from burnish.compiler.context import Context
from burnish.compiler.pipeline import Pipeline, run_pipeline
from burnish.compiler.program import Program


def fused(program: Program) -> tuple[float, Program]:
    gc.collect()
    start = time.process_time()
    result, _ = run_pipeline(Pipeline.parse("fuse"), program, Context(), verify=0)
    return time.process_time() - start, result


@pytest.mark.slow
def test_linear_in_the_nodes_of_a_transformer() -> None:
    small, large = transformer(1_000), transformer(6_000)
    before = min(fused(small)[0] for _ in range(3))
    after, result = min((fused(large) for _ in range(2)), key=lambda each: each[0])
    assert result.node_count() < large.node_count() / 2
    # Linear would be 6, quadratic 36; the margin is for a busy machine.
    assert after / before < 15
