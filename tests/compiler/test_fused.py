"""The burnish operators: their costs are those of their decompositions, and they only move less memory."""

from __future__ import annotations

import pytest
import torch

from burnish.compiler.cost_numbers import total
from burnish.compiler.inlining import inline_fused
from burnish.compiler.operators import operator_name
from tests.compiler.fused_programs import CALLS, program_of


@pytest.mark.parametrize("name", CALLS)
def test_cost_is_that_of_the_decomposition(name: str) -> None:
    program = program_of(name)
    fused, apart = program.cost(), inline_fused(program).cost()
    assert fused.unknown == ()
    assert apart.unknown == ()
    # Symbolic, hence for every batch size.
    assert fused.macs == apart.macs
    assert fused.flops == apart.flops
    assert fused.flops != 0
    assert fused.parameters == apart.parameters


@pytest.mark.parametrize(
    "name", ["conv residual", "linear residual", "skip layer norm", "self attention", "embeddings"]
)
def test_bytes_are_those_of_the_inputs_and_outputs(name: str) -> None:
    program = program_of(name)
    fused, apart = program.cost().at_samples(), inline_fused(program).cost().at_samples()
    assert fused.bytes_read < apart.bytes_read
    assert fused.bytes_written <= apart.bytes_written


def test_lookups_read_rows() -> None:
    program = program_of("embeddings")
    (figures,) = (node.figures for node in program.cost().nodes)
    # Bytes of the ids and of the rows per token sequence; one vector is both weight and bias.
    ids, rows = 8 * 5, 4 * 5 * 8
    batch = program.graphs["main"].find_nodes(op="placeholder")[0].meta["val"].shape[0].node.expr
    assert figures.bytes_read == total([(ids + 2 * rows) * batch, rows + 4 * 8])


def test_every_fused_operator_has_a_program() -> None:
    tried = {
        operator_name(node.target)
        for name in CALLS
        for node in program_of(name).graphs["main"].nodes
        if node.op == "call_function"
    }
    assert {
        name.replace("::", ".") for name in torch._C._dispatch_get_all_op_names() if name.startswith("burnish::")
    } <= tried
