from typing import Any

import pytest
import torch
from torch import nn
from torch.export.graph_signature import InputKind, OutputKind

from burnish.compiler.capture import capture
from burnish.compiler.errors import BackendError
from burnish.compiler.program import Program
from burnish.compiler.to_export import state_of, to_exported_program


class Updating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.total.add_(x.sum(0))
        return {"y": self.linear(x) + self.total, "x": x}


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (x,))


def program_of(model: nn.Module, *inputs: Any) -> Program:
    return capture(model.eval(), inputs)


def test_the_result_computes_the_same_at_another_batch_size() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    exported = to_exported_program(program_of(model, torch.randn(2, 4)))
    x = torch.randn(5, 4)
    torch.testing.assert_close(exported.module()(x)[0], model(x))
    assert {spec.kind for spec in exported.graph_signature.input_specs} == {InputKind.BUFFER, InputKind.USER_INPUT}


def test_constants_are_shared_and_the_program_stays() -> None:
    program = program_of(nn.Linear(4, 4), torch.randn(2, 4))
    before = program.structural_key()
    exported = to_exported_program(program)
    assert exported.state_dict["weight"] is program.constants["weight"]
    assert program.structural_key() == before


def test_updated_buffers_are_mutations() -> None:
    program = program_of(Updating(), torch.randn(2, 4))
    exported = to_exported_program(program)
    assert state_of(program) == ["total"]
    assert exported.graph_signature.buffers_to_mutate.keys() == {exported.graph_signature.output_specs[0].arg.name}
    module, x = exported.module(), torch.randn(3, 4)
    start = module.state_dict()["total"].clone()
    y, same = module(x)
    torch.testing.assert_close(module.state_dict()["total"], start + x.sum(0))
    assert torch.equal(same, x) and y.shape == (3, 4)


def test_updated_buffers_as_inputs_and_outputs() -> None:
    program = program_of(Updating(), torch.randn(2, 4))
    exported = to_exported_program(program, state_as_inputs=True)
    kinds = {spec.kind for spec in exported.graph_signature.output_specs}
    assert kinds == {OutputKind.USER_OUTPUT}
    x, total = torch.randn(3, 4), torch.randn(4)
    _, _, updated = exported.module()(x, total)
    torch.testing.assert_close(updated, total + x.sum(0))


def test_branches_become_submodules() -> None:
    exported = to_exported_program(program_of(Branching(), torch.randn(2, 4)))
    for x in (torch.full((3, 4), 0.5), torch.full((3, 4), -0.5)):
        expected = x.sin() if x.sum() > 0 else x.cos()
        torch.testing.assert_close(exported.module()(x)[0], expected)


def test_names_and_modules_are_kept() -> None:
    program = program_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    nodes = {node.name: node for node in to_exported_program(program).graph.nodes}
    assert all(name.isidentifier() for name in nodes)
    custom = [node.meta["custom"] for node in nodes.values() if node.op == "call_function"]
    assert [each["burnish_module"] for each in custom] == ["0", "1"]
    linear = next(node for node in nodes.values() if node.target is torch.ops.aten.linear.default)
    assert list(linear.meta["nn_module_stack"].values()) == [("0", "Linear")]


def test_ranges_of_symbols_are_kept() -> None:
    program = program_of(nn.Linear(4, 4), torch.randn(2, 4))
    ranges = to_exported_program(program).range_constraints
    (symbol,) = program.graphs["main"].find_nodes(op="placeholder")[0].meta["val"].shape[0].node.expr.free_symbols
    assert set(ranges) == {symbol}


def test_decompositions_still_run_on_the_result() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    exported = to_exported_program(program_of(model, torch.randn(2, 4))).run_decompositions()
    x = torch.randn(3, 4)
    torch.testing.assert_close(exported.module()(x)[0], model(x))


def test_several_stages_are_refused() -> None:
    program = program_of(nn.Linear(4, 4), torch.randn(2, 4))
    program.graphs["second"] = program.graphs["main"]
    with pytest.raises(BackendError, match="2 stages"):
        to_exported_program(program)
