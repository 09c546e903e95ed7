"""Fused operators taken apart: the same results at every size, whole ATen operators, names, provenance, branches."""

from __future__ import annotations

import pytest
import torch

from burnish.compiler.graphs import calls, name_of
from burnish.compiler.inlining import inline_fused
from burnish.compiler.numerics import worst_drift
from burnish.compiler.operators import operator_name
from burnish.compiler.program import Program
from burnish.compiler.provenance import provenance_of
from burnish.compiler.verify import verify
from tests.compiler.fused_programs import CALLS, program_of


def operators(program: Program) -> list[str]:
    return [operator_name(node.target) for _, graph in program.all_graphs() for node in calls(graph)]


def resized(program: Program, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)

    def value(sample: torch.Tensor) -> torch.Tensor:
        shape = (batch, *sample.shape[1:])
        if sample.is_floating_point():
            return torch.randn(shape, generator=generator)
        return torch.randint(0, 50, shape, generator=generator)

    return {name: value(sample) for name, sample in program.samples.items()}


@pytest.mark.parametrize("name", CALLS)
def test_every_operator(name: str) -> None:
    program = program_of(name)
    text = program.print()
    inlined = inline_fused(program)
    verify(inlined, 3)
    assert not any(each.startswith("burnish.") for each in operators(inlined))
    assert program.print() == text
    for batch in (1, 3):
        inputs = resized(program, batch)
        leaves = torch.utils._pytree.tree_leaves
        assert worst_drift(leaves(inlined(**inputs)), leaves(program(**inputs))) == 0.0


def test_operators_inside_stay_whole() -> None:
    assert operators(inline_fused(program_of("linear residual"))) == ["aten.linear", "aten.add.Tensor", "aten.gelu"]
    assert "aten.scaled_dot_product_attention" in operators(inline_fused(program_of("self attention")))
    assert operators(inline_fused(program_of("skip rms norm plain"))) == ["aten.add.Tensor", "aten.rms_norm"]


TEXT = """# burnish 1
constant @w: f32[8, 8]
graph main(%x: f32[B, 8]) {
  %a = burnish.linear_act(%x, @w, activation="relu")
  %b = burnish.linear_act(%a, @w, activation="relu")
  %c = burnish.linear_act(%b, @w, activation="tanh")
  %a.linear = burnish.skip_rms_norm(%a, %c, None, normalized_shape=[8])
  %norm = getitem(%a.linear, 0)
  return %norm
}
"""


def test_names_and_provenance() -> None:
    program = Program.parse(TEXT)
    origins = {name_of(node): provenance_of(node) for node in calls(program.graphs["main"])}
    inlined = inline_fused(program)
    names = [name_of(node) for node in calls(inlined.graphs["main"])]
    # A name that is taken already gets an ordinal; the results keep theirs.
    assert names == ["a.linear_1", "a", "b.linear", "b", "c.linear", "c", "a.linear.add", "norm"]
    for node in calls(inlined.graphs["main"]):
        fused = name_of(node).split(".")[0].replace("norm", "a.linear") if "add" not in name_of(node) else "a.linear"
        found, expected = provenance_of(node), origins[fused]
        assert found is not None
        assert expected is not None
        assert found.origins == expected.origins
        assert found.made_by.startswith("inline:burnish.")


def test_what_is_kept() -> None:
    program = Program.parse(TEXT)
    kept = inline_fused(program, lambda node: "linear_act" in str(node.target))
    assert operators(kept) == [*["burnish.linear_act"] * 3, "aten.add.Tensor", "aten.rms_norm"]
    assert inline_fused(program, lambda node: True) is program


def test_other_numbers_are_not_mixed_up() -> None:
    program = Program.parse(
        """# burnish 1
constant @w: f32[8, 8]
graph main(%x: f32[B, 8], %y: f32[B, 8]) {
  %a = burnish.linear_act(%x, @w, residual=%y)
  %b = burnish.linear_act(%x, @w, residual=%x)
  %c = burnish.quick_gelu(%a, alpha=0.0)
  %d = burnish.quick_gelu(%b, alpha=-0.0)
  %e = burnish.quick_gelu(%b, alpha=2)
  return %c, %d, %e
}
"""
    )
    inputs = resized(program, 3)
    actual, expected = inline_fused(program)(**inputs), program(**inputs)
    assert worst_drift(actual, expected) == 0.0


def test_branches() -> None:
    program = Program.parse(
        """# burnish 1
constant @w: f32[8, 8]
branch yes(%x: f32[B, 8], %u: f32[8, 8]) {
  %y = burnish.linear_act(%x, %u, activation="relu") : f32[B, 8]
  return %y
}
branch no(%x: f32[B, 8], %u: f32[8, 8]) {
  %n = aten.neg(%x) : f32[B, 8]
  return %n
}
graph main(%x: f32[B, 8], %p: b1[]) {
  %c = higher_order.cond(%p, &yes, &no, [%x, @w])
  %out = getitem(%c, 0)
  return %out
}
"""
    )
    inlined = inline_fused(program)
    verify(inlined, 3)
    assert sorted(operators(inlined)) == ["aten.linear", "aten.neg", "aten.relu", "getitem", "higher_order.cond"]


def test_a_long_program_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import burnish.compiler.inlining as module

    traces = []
    expansion = module.expansion
    monkeypatch.setattr(module, "expansion", lambda *args: traces.append(args) or expansion(*args))
    lines = ["# burnish 1", "constant @w: f32[2, 2]", "graph main(%x0: f32[B, 2]) {"]
    lines += [f'  %x{n + 1} = burnish.linear_act(%x{n}, @w, activation="relu")' for n in range(300)]
    inlined = inline_fused(Program.parse("\n".join([*lines, "  return %x300", "}"])))
    assert operators(inlined) == ["aten.linear", "aten.relu"] * 300
    assert len(traces) == 1
