"""A Program with several graphs prints, parses, saves, verifies, runs and goes through passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from burnish import Pipeline, Program, VerificationError
from burnish.compiler.graphs import name_of
from burnish.compiler.provenance import provenance_of
from burnish.compiler.verify import run_samples, verify

# The skip goes past the second stage: it is an input of the third.
TEXT = """# burnish 1
outputs {logits: %logits, hidden: %hidden}
constant @first.weight: f32[4, 3]
constant @second.weight: f32[4, 4]
constant @head.weight: f32[2, 4]
graph stage0(%x: f32[B, 3]) {
  %first = aten.linear(%x, @first.weight) : f32[B, 4]
  %drop = aten.dropout(%first, p=0.1, train=False) : f32[B, 4]
  return skip=%drop
}
graph stage1(%skip: f32[B, 4]) {
  %second = aten.linear(%skip, @second.weight) : f32[B, 4]
  %dead = aten.relu(%second) : f32[B, 4]
  return hidden=%second
}
graph stage2(%hidden: f32[B, 4], %skip: f32[B, 4]) {
  %add = aten.add.Tensor(%hidden, %skip) : f32[B, 4]
  %head = aten.linear(%add, @head.weight) : f32[B, 2]
  return logits=%head
}
"""


@pytest.fixture
def program() -> Program:
    return Program.parse(TEXT)


def reference(program: Program, x: torch.Tensor) -> dict[str, torch.Tensor]:
    first, second, head = (program.constants[name] for name in ("first.weight", "second.weight", "head.weight"))
    skip = x @ first.T
    hidden = skip @ second.T
    return {"logits": (hidden + skip) @ head.T, "hidden": hidden}


def test_it_runs_in_sequence(program: Program) -> None:
    for batch in (1, 5):
        x = torch.randn(batch, 3)
        actual, expected = program(x), reference(program, x)
        assert list(actual) == ["logits", "hidden"]
        torch.testing.assert_close(actual, expected)


def test_it_prints_parses_and_verifies(program: Program) -> None:
    printed = program.print()
    assert Program.parse(printed).print() == printed
    verify(program, 3)
    assert program.node_count() == 6
    assert program.parameter_count() == 12 + 16 + 8


def test_it_is_saved_and_loaded(program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "p.burnish")
    loaded = Program.load(tmp_path / "p.burnish")
    assert loaded.print() == program.print()
    x = torch.randn(3, 3)
    torch.testing.assert_close(loaded(x), program(x), rtol=0, atol=0)


def test_passes_work_on_every_graph(program: Program) -> None:
    optimized = Pipeline.parse("canonicalize,cse,dce").run(program, verify=4)
    names = [name_of(node) for graph in optimized.graphs.values() for node in graph.nodes if node.op == "call_function"]
    assert names == ["first", "second", "add", "head"]
    torch.testing.assert_close(run_samples(optimized), run_samples(program), rtol=0, atol=0)


def test_cost_adds_the_stages(program: Program) -> None:
    cost = program.cost().at_samples()
    assert cost.macs == 2 * (3 * 4 + 4 * 4 + 4 * 2)


def test_an_edge_from_nowhere_is_refused(program: Program) -> None:
    (node,) = program.graphs["stage1"].find_nodes(op="placeholder")
    node.target = "nowhere"
    with pytest.raises(VerificationError, match="'nowhere' is neither a program input nor made before"):
        verify(program, 1)


def test_every_node_keeps_its_origin(program: Program) -> None:
    optimized = Pipeline.parse("canonicalize,cse,dce").run(program)
    lines = {
        name_of(node): [origin.line for origin in provenance_of(node).origins]  # type: ignore[union-attr]
        for graph in optimized.graphs.values()
        for node in graph.nodes
        if node.op == "call_function"
    }
    source = TEXT.splitlines()
    assert all(f"%{name} = " in source[line - 1] for name, (line, *_) in lines.items())
