"""fold-constants: what is folded, what is not and why, how far it may grow, and that nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError
from burnish.compiler.graphs import calls
from burnish.compiler.operators import operator_name
from burnish.compiler.pipeline import PassRecord, Pipeline, run_pipeline
from burnish.compiler.program import Program
from burnish.passes.canonical import FoldConstants


class Model(nn.Module):
    """Runs a function on itself and the input; holds a weight, its transpose's twin, and a counter."""

    weight: nn.Parameter
    other: torch.Tensor
    steps: torch.Tensor

    def __init__(self, function: Callable[[Model, torch.Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.register_buffer("other", torch.randn(4, 6))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> object:
        return self.function(self, x)


def fold(function: Callable[[Model, torch.Tensor], object], **options: int) -> tuple[Program, PassRecord]:
    program = burnish.capture(Model(function), (torch.randn(2, 6),))
    folded, records = run_pipeline(Pipeline([FoldConstants(**options)]), program, Context(), verify=4)
    return folded, records[0]


def operators(program: Program) -> list[str]:
    return [operator_name(node.target) for node in program.graphs["main"].nodes if node.op == "call_function"]


def used(program: Program) -> dict[str, torch.Tensor]:
    """Return the constants that some operator reads."""
    graph = program.graphs["main"]
    return {str(n.target): program.constants[str(n.target)] for n in graph.find_nodes(op="get_attr") if n.users}


def test_stores_only_the_result_of_a_subgraph() -> None:
    folded, record = fold(lambda m, x: x + (m.weight * torch.arange(6) + m.other.exp()).sum(0))
    assert operators(folded) == ["aten.add.Tensor"]
    assert record.rules == {"fold-constants": 1}
    assert list(used(folded)) == ["sum"]
    model = Model(lambda m, x: x)
    assert torch.equal(used(folded)["sum"], (model.weight * torch.arange(6) + model.other.exp()).sum(0))


def test_transposed_weight_keeps_its_layout() -> None:
    folded, record = fold(lambda m, x: x @ m.weight.t())
    assert operators(folded) == ["aten.matmul"]
    (value,) = used(folded).values()
    assert (tuple(value.shape), value.stride()) == ((6, 4), (1, 6))
    assert record.drift == 0.0


def test_a_view_owns_its_memory() -> None:
    folded, _ = fold(lambda m, x: x + m.weight[1])
    (value,) = used(folded).values()
    assert value.untyped_storage().nbytes() == 6 * 4


def test_equal_results_are_stored_once() -> None:
    folded, record = fold(lambda m, x: (x + torch.arange(6)) * torch.arange(6, dtype=torch.int64) - (torch.ones(6) + 1))
    assert operators(folded) == ["aten.add.Tensor", "aten.mul.Tensor", "aten.sub.Tensor"]
    assert len(used(folded)) == 2
    assert record.rewrites == 3


def test_a_result_equal_to_a_constant_becomes_it() -> None:
    folded, _ = fold(
        lambda m, x: x @ m.weight.t().contiguous().t().contiguous().t() + (x * m.weight.neg().neg()[0]).sum()
    )
    assert set(used(folded)) <= {"weight", "t", "matmul", "select", "t_2"}
    folded, _ = fold(lambda m, x: nn.functional.linear(x, m.weight) + nn.functional.linear(x, m.weight.neg().neg()))
    assert list(used(folded)) == ["weight"]


def test_negative_zero_is_not_zero() -> None:
    folded, _ = fold(lambda m, x: (x / torch.zeros(6), x / -torch.zeros(6)))
    assert len(used(folded)) == 2


@pytest.mark.parametrize(("limit", "folds"), [(0, False), (95, False), (96, True)])
def test_growth_is_bounded(limit: int, folds: bool) -> None:
    # The weight stays in use, so that its copy would cost 96 bytes.
    folded, record = fold(lambda m, x: nn.functional.linear(x, m.weight) @ m.weight.exp(), max_growth=limit)
    assert ("aten.exp" not in operators(folded)) == folds
    reasons = [] if folds else [f"the constants would grow by 96 bytes (max_growth is {limit})"]
    assert [skip.reason for skip in record.skips] == reasons


def test_what_becomes_superfluous_pays() -> None:
    folded, _ = fold(lambda m, x: x @ (m.weight.exp() + 1).t() + x @ m.weight.abs().t(), max_growth=96)
    assert operators(folded) == ["aten.matmul", "aten.matmul", "aten.add.Tensor"]
    folded, record = fold(lambda m, x: x @ (m.weight.exp() + 1).t(), max_growth=0)
    assert operators(folded) == ["aten.matmul"]
    assert record.skips == []


def test_folds_what_leads_to_a_result_that_is_too_large() -> None:
    folded, record = fold(lambda m, x: x.sum() + torch.arange(6.0).exp().repeat(1000), max_growth=100)
    assert operators(folded) == ["aten.sum", "aten.repeat", "aten.add.Tensor"]
    assert list(used(folded)) == ["exp"]
    assert [skip.node for skip in record.skips] == ["repeat"]


@pytest.mark.parametrize(
    ("function", "operator", "reason"),
    [
        (lambda m, x: x + torch.rand(6), "aten.rand", "it draws random numbers"),
        (lambda m, x: x + torch.rand_like(m.weight[0]), "aten.rand_like", "it draws random numbers"),
        (lambda m, x: (x, m.weight + 1), "aten.add.Tensor", "it is an output of the graph"),
        (lambda m, x: x.sum() + m.weight[:1].expand(9, 6), "aten.expand", "a broadcast costs less than its result"),
        (
            lambda m, x: x[:1, :4] + m.weight[torch.nonzero(m.other[:, 0])].sum(),
            "aten.nonzero",
            "the size of its result depends on its values",
        ),
    ],
)
def test_refuses(function: Callable[[Model, torch.Tensor], object], operator: str, reason: str) -> None:
    program = burnish.capture(Model(function), (torch.randn(2, 6),))
    folded, records = run_pipeline(Pipeline([FoldConstants()]), program, Context(), verify=4)
    assert operator in operators(folded)
    assert reason in [skip.reason for skip in records[0].skips]


def test_a_buffer_that_is_updated_is_no_constant() -> None:
    def count(model: Model, x: torch.Tensor) -> torch.Tensor:
        scaled = x * (model.steps + 1)
        model.steps.add_(1)
        return scaled

    program = burnish.capture(Model(count), (torch.randn(2, 6),))
    folded, records = run_pipeline(Pipeline([FoldConstants()]), program, Context(), verify=4)
    assert {skip.reason for skip in records[0].skips} == {"a run updates its input @steps"}
    x = torch.ones(1, 6)
    assert [float(folded(x)[0, 0]) for _ in range(3)] == [1.0, 2.0, 3.0]


def test_sizes_of_inputs_stay_symbolic() -> None:
    folded, record = fold(lambda m, x: x + torch.zeros(x.shape[0], 6) + torch.arange(x.shape[0])[:, None])
    assert "aten.zeros" in operators(folded)
    assert record.rewrites == 0
    assert tuple(folded(torch.randn(5, 6)).shape) == (5, 6)


def test_numbers_become_literals() -> None:
    program = Program.parse(
        "# burnish 1\n"
        "graph main(%x: f32[B, 6]) {\n"
        "  %size = aten.sym_size.int(%x, 1)\n"
        "  %twice = py.mul(%size, 2)\n"
        "  %zeros = aten.zeros([%twice]) : f32[12]\n"
        "  %cat = aten.reshape(%x, [-1, %size]) : f32[B, 6]\n"
        "  %add = aten.add.Tensor(%cat, %x) : f32[B, 6]\n"
        "  %sum = aten.sum(%zeros) : f32[]\n"
        "  %mul = aten.mul.Tensor(%add, %sum) : f32[B, 6]\n"
        "  return %mul\n"
        "}\n"
    )
    folded, records = run_pipeline(Pipeline([FoldConstants()]), program, Context(), verify=4)
    assert operators(folded) == ["aten.reshape", "aten.add.Tensor", "aten.mul.Tensor"]
    assert records[0].rules["fold-constants"] == 1
    assert records[0].rules["fold-numbers"] > 0


def test_a_kernel_that_fails_stays() -> None:
    program = Program.parse(
        "# burnish 1\n"
        "constant @index: i64[2]\n"
        "constant @table: f32[4, 6]\n"
        "graph main(%x: f32[B, 6]) {\n"
        "  %rows = aten.embedding(@table, @index) : f32[2, 6]\n"
        "  %sum = aten.sum(%rows) : f32[]\n"
        "  %add = aten.add.Tensor(%x, %sum) : f32[B, 6]\n"
        "  return %add\n"
        "}\n",
        {"index": torch.tensor([1, 99]), "table": torch.randn(4, 6)},
    )
    folded, records = run_pipeline(Pipeline([FoldConstants()]), program, Context(), verify=0)
    assert operators(folded) == ["aten.embedding", "aten.sum", "aten.add.Tensor"]
    assert [(skip.node, skip.reason) for skip in records[0].skips] == [
        ("sum", "computing it fails: index out of range in self")
    ]


def test_weights_that_are_quantized_stay_so() -> None:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the operators

    def quantized(model: Model, x: torch.Tensor) -> torch.Tensor:
        library = torch.ops.quantized_decomposed
        whole = library.quantize_per_tensor(model.weight, 0.02, 0, -128, 127, torch.int8)
        return x @ library.dequantize_per_tensor(whole, 0.02, 0, -128, 127, torch.int8).t()  # type: ignore[no-any-return]

    folded, record = fold(quantized)
    assert operators(folded)[0] == "quantized_decomposed.dequantize_per_tensor"
    assert [value.dtype for value in used(folded).values()] == [torch.int8]
    assert [skip.reason for skip in record.skips] == ["its constant is kept quantized on purpose"]


def test_origins_are_kept() -> None:
    program = burnish.capture(nn.Sequential(nn.Linear(6, 6), _Scaled()), (torch.randn(2, 6),))
    folded, _ = run_pipeline(Pipeline([FoldConstants()]), program, Context(), verify=4)
    node = next(each for each in folded.graphs["main"].find_nodes(op="get_attr") if "exp" in str(each.target))
    assert {origin.module for origin in node.meta["provenance"].origins} >= {"1"}
    assert node.meta["provenance"].made_by == "fold-constants:fold-constants"


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.exp()


def test_negative_growth_is_refused() -> None:
    with pytest.raises(OptionError, match="max_growth"):
        FoldConstants(max_growth=-1)


_UNARY: list[Callable[[torch.Tensor], torch.Tensor]] = [
    torch.exp,
    torch.neg,
    torch.sin,
    lambda t: t.t().contiguous().t(),
]
_BINARY: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [torch.add, torch.mul, torch.sub, torch.maximum]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=12), st.data()
)
def test_random_mixtures_are_exact(steps: list[tuple[int, int, int]], data: st.DataObject) -> None:
    def run(model: Model, x: torch.Tensor) -> torch.Tensor:
        values = [model.weight, model.other, torch.ones(4, 6), x.sum() * torch.ones(4, 6)]
        for kind, first, second in steps:
            a, b = values[first % len(values)], values[second % len(values)]
            values.append(_UNARY[kind](a) if kind < 4 else _BINARY[kind - 4](a, b))
        return torch.stack([values[-1], values[len(values) // 2], values[3]])

    limit = data.draw(st.sampled_from([0, 100, 1 << 20]))
    folded, record = fold(run, max_growth=limit)
    assert record.drift == 0.0
    if limit == 1 << 20:
        for node in calls(folded.graphs["main"]):
            fixed = all(each.op == "get_attr" for each in node.all_input_nodes)
            assert not fixed or not node.users or any(user.op == "output" for user in node.users)
