"""What golden cases of canonicalize, cse and dce cannot show: speed, shared weights, buffers, origins, stages."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
import torch
from torch import nn

from burnish.compiler.capture import capture
from burnish.compiler.context import Context
from burnish.compiler.facts import Fact
from burnish.compiler.graphs import calls, name_of, output_of
from burnish.compiler.operators import operator_name
from burnish.compiler.pipeline import Pipeline, run_pipeline
from burnish.compiler.program import Program
from burnish.compiler.provenance import Origin, Provenance, provenance_of
from burnish.compiler.registry import find_pass
from burnish.compiler.rewriter import Rewriter

aten = torch.ops.aten
START = """# burnish 1
constant @w: f32[8, 8]
graph main(%x: f32[B, 8]) {
  %a = aten.linear(%x, @w) : f32[B, 8]
  return %a
}
"""


def run(program: Program, text: str) -> Program:
    return run_pipeline(Pipeline.parse(text), program, Context(), verify=4)[0]


def stack(count: int) -> Program:
    """A chain of `count` operators, of which each of the three passes finds something in every tenth."""
    program = Program.parse(START)
    graph = program.graphs["main"]
    weight, out = graph.find_nodes(op="get_attr")[0], output_of(graph)
    node = next(calls(graph))
    kind = node.meta["val"]
    made = 0

    def add(target: Any, *args: Any) -> Any:
        nonlocal made
        made += 1
        with graph.inserting_before(out):
            new = graph.call_function(target, args)
        origin = Provenance((Origin(f"layers.{made}"),), "capture")
        new.meta = {"val": kind, "name": f"layers.{made}", "provenance": origin}
        return new

    while made < count:
        node = add(aten.hardtanh.default, add(aten.linear.default, node, weight), 0, 6)
        node = add(aten.dropout.default, node, 0.5, False)
        node = add(aten.add.Tensor, add(aten.neg.default, node), add(aten.neg.default, node))
        node = add(aten.view.default, add(aten.contiguous.default, node), [-1, 8])
        add(aten.relu.default, node)
        node = add(aten.mul.Tensor, node, node)
    out.args = ({"output": node},)
    return program


def seconds(name: str, count: int) -> float:
    program = stack(count)
    rewriter = Rewriter(program, name)
    gc.collect()
    gc.disable()
    start = time.process_time()
    find_pass(name)().run(program, rewriter, Context())
    spent = time.process_time() - start
    gc.enable()
    assert rewriter.rewrites >= count // 10
    return spent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["canonicalize", "cse", "dce"])
def test_linear_in_the_number_of_nodes(name: str) -> None:
    small = min(seconds(name, 10_000) for _ in range(2))
    # Linear would be 4, quadratic 16; the margin is for a busy machine.
    assert seconds(name, 40_000) / small < 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["canonicalize", "cse", "dce"])
def test_one_hundred_thousand_nodes(name: str) -> None:
    assert seconds(name, 100_000) / 100_000 < 60e-6


def test_merging_thousands_of_equal_nodes_is_linear_in_their_origins() -> None:
    text = "".join(f"  %n{index} = aten.neg(%x) : f32[4]\n" for index in range(3000))
    program = Program.parse(f"# burnish 1\ngraph main(%x: f32[4]) {{\n{text}  return %n0, %n2999\n}}\n")
    start = time.process_time()
    find_pass("cse")().run(program, Rewriter(program, "cse"), Context())
    assert time.process_time() - start < 3
    (node,) = calls(program.graphs["main"])
    found = provenance_of(node)
    assert found is not None and len(found.origins) == 3000


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.dropout(self.embed(tokens).contiguous(), training=False))


def test_tied_weights_stay_tied() -> None:
    program = capture(Tied(), (torch.randint(0, 11, (2, 5)),))
    after = run(program, "canonicalize,cse,dce")
    assert len(after.used_constants()) == 1
    (weight,) = after.used_constants().values()
    assert weight is next(iter(program.used_constants().values()))
    assert [operator_name(node.target) for node in calls(after.graphs["main"])] == ["aten.embedding", "aten.linear"]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = self.count.clone()
        self.count.add_(x.sum(0))
        return before, self.count * 1


def test_buffers_are_updated_as_by_the_model() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3)
    after = run(capture(Counter(), (x,)), "canonicalize,cse,dce")
    model = Counter().eval()
    for _ in range(3):
        expected, actual = model(x), after(x)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert torch.equal(after.constants["count"], model.count)


def test_merged_nodes_keep_both_origins() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.ReLU(), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    after = run(capture(Twice(), (torch.randn(2, 3),)), "cse")
    (relu,) = [node for node in calls(after.graphs["main"]) if node.target is aten.relu.default]
    found = provenance_of(relu)
    assert found is not None
    assert [origin.module for origin in found.origins] == ["a", "b"]
    assert name_of(relu) == "a"


def test_canonicalize_establishes_its_fact() -> None:
    assert Fact.CANONICAL in run(Program.parse(START), "canonicalize").facts


def test_canonical_program_accepts_every_batch_size() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = nn.functional.hardtanh(self.norm(self.conv(x)), 0, 6)
            y = y.view(x.shape[0], 4, -1).transpose(1, 2).contiguous().view(x.shape[0] * 36, 4)
            return self.head(y).view(x.shape[0], -1, 5).expand(x.shape[0], 36, 5)

    model = Net().eval()
    after = run(capture(model, (torch.randn(2, 3, 8, 8),)), "canonicalize,cse,dce")
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(after(x), model(x), rtol=1e-5, atol=1e-6)


def test_a_layout_that_a_dropped_copy_changed_is_no_difference() -> None:
    # At batch 1 the second view of what is not contiguous is no copy, and a product of such a matrix rounds otherwise.
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x).view(x.shape[0], 4, -1).transpose(1, 2).contiguous()
            return self.head(y.view(x.shape[0] * 36, 4))

    torch.manual_seed(0)
    after = run(capture(Net(), (torch.randn(1, 3, 8, 8),)), "canonicalize")
    assert "contiguous" not in after.print()


def test_a_change_of_the_order_of_dimensions_is_seen() -> None:
    # hash(-1) is hash(-2): the structural key must tell them apart all the same.
    line = "%a = aten.sum.dim_IntList(%x, dim=[DIM]) : f32[3]"
    text = f"# burnish 1\ngraph main(%x: f32[3, 3]) {{\n  {line}\n  return %a\n}}\n"
    first, second = (Program.parse(text.replace("DIM", dim)) for dim in ("-1", "-2"))
    assert first.structural_key() != second.structural_key()


STAGES = """# burnish 1
outputs %y
graph first(%x: f32[B, 4]) {
  %a = aten.neg(%x) : f32[B, 4]
  %b = aten.relu(%x) : f32[B, 4]
  return a=%a, b=%b
}
graph second(%a: f32[B, 4], %b: f32[B, 4]) {
  %y = aten.abs(%a) : f32[B, 4]
  %dead = aten.abs(%b) : f32[B, 4]
  return y=%y
}
"""


def test_dce_sees_through_stages() -> None:
    after = run(Program.parse(STAGES), "dce")
    assert [name_of(node) for node in calls(after.graphs["first"])] == ["a"]
    assert [node.target for node in after.graphs["second"].find_nodes(op="placeholder")] == ["a"]
    assert list(output_of(after.graphs["first"]).args[0]) == ["a"]
