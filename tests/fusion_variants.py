"""Check one variant of a pattern: fused at level 4, and compared with the original at sizes that no sample had."""

from __future__ import annotations

from typing import Any

import torch

from burnish import Context, Pipeline, Program
from burnish.compiler.numerics import worst_drift
from burnish.compiler.operators import operator_name
from burnish.compiler.pipeline import run_pipeline

_PIPELINE = "canonicalize,fold-constants,fuse,dce"


def fuse(text: str, tolerance: float = 1e-5, batches: tuple[int, ...] = (1, 3, 17)) -> Program:
    """Return the fused Program of `text`; asserts that it computes the same at every batch size (the symbol B).

    Args:
        text: a Program whose inputs have the batch B as their first dimension, or no symbol at all.
        tolerance: largest drift.
        batches: values of B to try.
    """
    program = Program.parse(text)
    fused, _ = run_pipeline(Pipeline.parse(_PIPELINE), program, Context(), verify=4)
    for batch in batches:
        inputs = {name: _resized(value, batch) for name, value in program.samples.items()}
        actual, expected = fused(**inputs), program(**inputs)
        leaves = torch.utils._pytree.tree_leaves
        assert worst_drift(leaves(actual), leaves(expected)) <= tolerance
    return fused


def operators(program: Program) -> list[str]:
    """Return the names of the operators of a Program, in graph order."""
    return [
        operator_name(node.target)
        for _, graph in program.all_graphs()
        for node in graph.nodes
        if node.op == "call_function"
    ]


def reasons(text: str) -> list[str]:
    """Return why rules of fuse refused what is in `text`."""
    _, records = run_pipeline(Pipeline.parse(_PIPELINE), Program.parse(text), Context(), verify=4)
    return [skip.reason for record in records for skip in record.skips]


def _resized(value: Any, batch: int) -> Any:
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    shape = (batch, *value.shape[1:])
    generator = torch.Generator().manual_seed(batch)
    if value.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=value.dtype)
    high = 2 if value.dtype == torch.bool else 3
    return torch.randint(0, high, shape, generator=generator).to(value.dtype)
