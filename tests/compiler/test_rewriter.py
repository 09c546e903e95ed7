"""The Rewriter: the five edits, provenance, counting, limits, sweeps."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from burnish.compiler.editing import StopRewriting
from burnish.compiler.errors import BurnishError, VerificationError
from burnish.compiler.graphs import name_of
from burnish.compiler.program import Program
from burnish.compiler.provenance import provenance_of
from burnish.compiler.rewriter import Rewriter, rule
from burnish.compiler.verify import verify

TEXT = """# burnish 1
constant @w: f32[4, 3]
graph main(%x: f32[B, 3]) {
  %fc = aten.linear(%x, @w) : f32[B, 4]
  %act = aten.relu(%fc) : f32[B, 4]
  %more = aten.relu(%act) : f32[B, 4]
  return %more
}
"""


@pytest.fixture
def program() -> Program:
    return Program.parse(TEXT)


def node(program: Program, name: str) -> fx.Node:
    return next(each for each in program.graphs["main"].nodes if each.meta.get("name") == name)


def test_replace_takes_over_name_users_and_origins(program: Program) -> None:
    rewriter = Rewriter(program, "test")
    old = node(program, "act")
    origins = provenance_of(old).origins  # type: ignore[union-attr]
    new = rewriter.replace(old, "aten.relu6", (node(program, "fc"),))
    assert name_of(new) == "act"
    assert [name_of(user) for user in new.users] == ["more"]
    found = provenance_of(new)
    assert found is not None
    assert found.origins == origins
    assert found.made_by == "test:replace"
    verify(program, 3)
    assert rewriter.changed
    assert rewriter.rewrites == 1


def test_insert_types_the_node_and_makes_its_name_unique(program: Program) -> None:
    rewriter = Rewriter(program, "test")
    new = rewriter.insert(node(program, "more"), "aten.sum.dim_IntList", (node(program, "fc"), [1]), name="act")
    assert name_of(new) == "act_1"
    assert new.meta["val"].dim() == 1
    verify(program, 2)


def test_insert_refuses_what_the_operator_refuses(program: Program) -> None:
    rewriter = Rewriter(program, "test")
    with pytest.raises(VerificationError, match=r"aten\.conv2d"):
        rewriter.insert(node(program, "more"), "aten.conv2d", (node(program, "fc"), node(program, "fc")))


def test_erase_refuses_a_node_in_use(program: Program) -> None:
    with pytest.raises(BurnishError, match="still has 1 users"):
        Rewriter(program, "test").erase(node(program, "fc"))


def test_set_constant_never_touches_what_others_share(program: Program) -> None:
    copy = program.copy()
    before = program.constants["w"].clone()
    rewriter = Rewriter(copy, "test")
    new = rewriter.set_constant(copy.graphs["main"], "w", torch.zeros(4, 3))
    assert new.target == "w_1"
    assert torch.equal(program.constants["w"], before)
    assert "w_1" not in program.constants
    assert rewriter.constant(new) is copy.constants["w_1"]
    assert rewriter.constant(node(copy, "fc")) is None


def test_a_mutable_buffer_is_no_constant() -> None:
    program = Program.parse(
        """# burnish 1
constant @n: f32[2]
graph main(%x: f32[2]) {
  %add = aten.add.Tensor(@n, %x) : f32[2]
  %n.update = aten.copy_(@n, %add) : f32[2]
  return %add
}
"""
    )
    add = next(each for each in program.graphs["main"].nodes if each.meta.get("name") == "add")
    assert Rewriter(program, "test").constant(add.args[0]) is None


@rule("aten.relu")
def _merge_relu(found: fx.Node, rewriter: Rewriter) -> None:
    inner = found.args[0]
    assert isinstance(inner, fx.Node)
    if inner.target is not torch.ops.aten.relu.default:
        rewriter.skip(found, "its input is no relu")
        return
    rewriter.replace(found, inner)


def test_sweep_applies_rules_and_keeps_reasons(program: Program) -> None:
    rewriter = Rewriter(program, "test")
    rewriter.sweep([_merge_relu])
    assert rewriter.counts == {"merge-relu": 1}
    assert [(skip.rule, skip.node, skip.reason) for skip in rewriter.skips] == [
        ("merge-relu", "act", "its input is no relu")
    ]
    verify(program, 3)


def test_rules_that_undo_each_other_are_stopped(program: Program) -> None:
    @rule("aten.relu")
    def _there(found: fx.Node, rewriter: Rewriter) -> None:
        rewriter.replace(found, "aten.relu6", same_type=True)

    @rule("aten.relu6")
    def _back(found: fx.Node, rewriter: Rewriter) -> None:
        rewriter.replace(found, "aten.relu", same_type=True)

    with pytest.raises(BurnishError, match="never comes to rest"):
        Rewriter(program, "test").sweep([_there, _back])


def test_the_limit_ends_the_pass_before_the_next_rewrite(program: Program) -> None:
    rewriter = Rewriter(program, "test", limit=1)
    rewriter.replace(node(program, "more"), "aten.relu6")
    with pytest.raises(StopRewriting):
        rewriter.replace(node(program, "act"), "aten.relu6")
    verify(program, 3)
    assert name_of(node(program, "act")) == "act"


def test_several_edits_are_one_rewrite(program: Program) -> None:
    rewriter = Rewriter(program, "test", limit=1)
    with rewriter.rewrite("pair"):
        half = rewriter.insert(node(program, "more"), "aten.mul.Tensor", (node(program, "act"), 0.5))
        rewriter.replace(node(program, "more"), half)
    assert rewriter.counts == {"pair": 1}
    verify(program, 3)
