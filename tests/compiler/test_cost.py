"""The cost model against torch's FLOP counter, hand-computed figures, and static captures."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from burnish.compiler.capture import capture
from burnish.compiler.cost import Cost, Figures, cost_of
from burnish.compiler.cost_rules import Call, Work, flop_rule
from burnish.compiler.errors import InputError
from burnish.compiler.program import Program
from burnish.compiler.provenance import Origin, Provenance


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, groups=2)
        self.skip = nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x)))) + self.skip(x))


def resnet() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return nn.Sequential(*stem, Block(8, 16, 2), Block(16, 16, 1), nn.ConvTranspose2d(16, 16, 2, 2, groups=4), *head)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.project(x).view(x.shape[0], -1, 4, 12).transpose(1, 2).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(query, key, value)


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        self.bert = transformers.BertModel(transformers.BertConfig(vocab_size=100, **sizes))

    def forward(self, ids: torch.Tensor) -> Any:
        return self.bert(ids).last_hidden_state


MODELS = [
    pytest.param(resnet, lambda n: torch.randn(n, 3, 32, 32), id="resnet"),
    pytest.param(Attention, lambda n: torch.randn(n, 6, 16), id="attention"),
    pytest.param(Bert, lambda n: torch.ones(n, 9, dtype=torch.int64), id="bert"),
]


@pytest.mark.parametrize(("model", "example"), MODELS)
def test_macs_equal_torchs_flop_counter_and_symbols_equal_static_captures(model: Any, example: Any) -> None:
    torch.manual_seed(0)
    module = model().eval()
    program = capture(module, (example(2),))
    cost = cost_of(program)
    assert not isinstance(cost.flops, int)
    assert cost.unknown == ()
    name = next(iter(program.samples))
    for batch in (1, 3):
        inputs = example(batch)
        # The counter does not know the fused attention of CPUs.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            module(inputs)
        here = cost.at({name: inputs})
        assert 2 * here.macs == counter.get_total_flops() > 0
        static = cost_of(capture(module, (inputs,), dynamic_shapes=({},)))
        for wanted in (static.total, *static.by_module().values()):
            assert all(type(each) is int for each in figures(wanted))
        assert here.total == static.total
        assert here.by_module() == static.by_module()
    assert cost.at_samples().total == cost.at({name: tuple(example(2).shape)}).total


def figures(value: Figures) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name in Figures.__dataclass_fields__)


def test_costing_adds_no_guards() -> None:
    program = capture(resnet(), (torch.randn(2, 3, 32, 32),))
    environment = program.fake_mode.shape_env
    assert environment is not None
    before = len(environment.guards)
    cost_of(program).at_samples()
    assert len(environment.guards) == before


def static(model: nn.Module, *inputs: torch.Tensor) -> Cost:
    return cost_of(capture(model.eval(), inputs, dynamic_shapes=(({},) * len(inputs)) if inputs else None))


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def of(function: Any, *shape: int) -> Cost:
    return static(Function(function), torch.randn(*shape))


def test_bytes_and_peak_of_a_linear_layer() -> None:
    cost = static(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4))
    assert cost.total == Figures(
        flops=2 * (5 * 4 * 8 + 5 * 8 * 2) + 5 * 8 + 5 * 8 + 5 * 2,
        macs=5 * 4 * 8 + 5 * 8 * 2,
        bytes_read=4 * ((20 + 32 + 8) + 40 + (40 + 16 + 2)),
        bytes_written=4 * (40 + 40 + 10),
        parameters=32 + 8 + 16 + 2,
        parameter_bytes=4 * 58,
        peak_activation_bytes=4 * (40 + 40),
    )
    assert [node.figures.peak_activation_bytes for node in cost.nodes] == [4 * 60, 4 * 80, 4 * 50]


def test_a_skip_connection_keeps_the_input_alive() -> None:
    cost = of(lambda x: torch.exp(torch.relu(x)) + x, 10)
    assert [node.figures.peak_activation_bytes for node in cost.nodes] == [80, 120, 120]


def test_views_cost_nothing_and_keep_their_base_alive() -> None:
    cost = of(lambda x: (torch.relu(x).transpose(0, 1), x.sum()), 6, 4)
    transpose = next(node for node in cost.nodes if node.operator == "aten.transpose.int")
    assert figures(transpose.figures)[:4] == (0, 0, 0, 0)
    # relu's storage (96) is an output through its view, x (96) lives until the sum (4).
    assert [node.figures.peak_activation_bytes for node in cost.nodes] == [192, 192, 196]


def test_reshape_copies_only_what_is_strided() -> None:
    assert of(lambda x: x.reshape(24), 6, 4).bytes_written == 0
    assert of(lambda x: x.t().reshape(24), 6, 4).bytes_written == 96
    assert of(lambda x: x[2:].reshape(16), 6, 4).bytes_written == 0
    assert of(lambda x: x[:, 2:].reshape(12), 6, 4).bytes_written == 48


def test_parts_of_a_tuple_die_one_by_one() -> None:
    cost = of(lambda x: torch.exp(torch.exp(torch.topk(x, 2)[0])), 4)
    # topk: x 16 + values 8 + indices 16; then values and one result, 8 each, the indices gone.
    by_operator = [(node.operator, node.figures.peak_activation_bytes) for node in cost.nodes]
    assert by_operator[:4] == [("aten.topk", 40), ("getitem", 8), ("aten.exp", 16), ("aten.exp", 16)]


def test_a_lookup_reads_its_rows_only() -> None:
    cost = static(nn.Embedding(1000, 4), torch.zeros(3, dtype=torch.int64))
    assert (cost.flops, cost.bytes_read, cost.bytes_written) == (0, 3 * 16 + 3 * 8, 3 * 16)
    assert cost.parameters == 4000


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.b(self.a(x))
        return hidden


def test_tied_weights_count_once_in_total_and_in_each_module() -> None:
    cost = static(Tied(), torch.randn(2, 4))
    assert cost.parameters == 16
    assert {name: each.parameters for name, each in cost.by_module().items()} == {"": 16, "a": 16, "b": 16}


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(x)[0]
        return hidden


@pytest.mark.parametrize(("kind", "gates", "state"), [(nn.LSTM, 4, 5), (nn.GRU, 3, 5), (nn.RNN, 1, 0)])
def test_recurrent_layers(kind: Any, gates: int, state: int) -> None:
    layer = kind(5, 6, num_layers=2, bidirectional=True, batch_first=True)
    cost = static(Recurrent(layer), torch.randn(3, 7, 5))
    tokens, rows = 3 * 7, 6 * gates
    macs = tokens * 2 * (rows * (5 + 6) + rows * (12 + 6))
    assert cost.macs == macs
    assert cost.flops == 2 * macs + tokens * 4 * (2 * rows + 2 * rows + state * 6)


@pytest.mark.parametrize(
    ("function", "shape", "macs", "flops"),
    [
        (lambda x: torch.einsum("bij,bkj->bik", x, x), (2, 3, 4), 2 * 3 * 3 * 4, 2 * 72),
        (lambda x: torch.einsum("...ij,...kj->...ik", x, x), (2, 5, 3, 4), 360, 720),
        (lambda x: torch.einsum("ij,jk,kl->il", x, x, x), (3, 3), 54, 108),
        (lambda x: torch.einsum("ij,ij", x, x), (3, 4), 12, 24),
        (lambda x: torch.softmax(x, -1), (3, 4), 0, 60),
        (lambda x: x.mean(1), (3, 4), 0, 12),
        (lambda x: torch.tanh(x), (3, 4), 0, 12),
        (lambda x: nn.functional.hardswish(x), (3, 4), 0, 12),
        (lambda x: nn.functional.max_pool2d(x, 2), (1, 2, 4, 4), 0, 8 * 4),
        (lambda x: nn.functional.layer_norm(x, (4,)), (3, 4), 0, 48),
        (lambda x: torch.cat([x, x]), (3, 4), 0, 0),
        (lambda x: torch.matmul(x, x[0]), (3, 4), 12, 24),
        (lambda x: torch.addmm(x, x, x), (3, 3), 27, 54 + 9),
        (lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"), (1, 2, 4, 4), 0, 8 * 128),
    ],
)
def test_rules(function: Any, shape: tuple[int, ...], macs: int, flops: int) -> None:
    cost = of(function, *shape)
    assert (cost.macs, cost.flops, cost.unknown) == (macs, flops, ())


def test_an_operator_without_a_rule_is_listed_until_it_gets_one() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        inverse: torch.Tensor = torch.linalg.inv(x)
        return inverse

    assert of(run, 4, 4).unknown == ("aten.linalg_inv",)
    from burnish.compiler import cost_rules

    @flop_rule("aten.linalg_inv")
    def inversion(call: Call) -> Work:
        return Work(macs=call.shape("A")[-1] ** 3)

    try:
        cost = of(run, 4, 4)
        assert (cost.flops, cost.unknown) == (128, ())
    finally:
        del cost_rules._RULES["aten.linalg_inv"]


class Conditional(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda t: t @ t, lambda t: torch.relu(torch.exp(torch.sin(t))), (x,))


def test_a_conditional_costs_its_larger_branch() -> None:
    cost = static(Conditional(), torch.randn(8, 8))
    node = next(node for node in cost.nodes if node.operator == "higher_order.cond")
    assert node.figures.flops == 2 * 8**3
    assert node.figures.bytes_written == 3 * 256
    # x, the predicate (1 byte), and two temporaries of the second branch.
    assert node.figures.peak_activation_bytes == 256 + 1 + 2 * 256


def test_the_peak_of_dynamic_sizes_is_exact_where_different_nodes_make_it() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        # 200 floats whatever the batch, then 3 times 10 floats a row.
        return torch.relu(torch.exp(x)) + torch.relu(x.sum(0).repeat(10)).sum() + x

    cost = cost_of(capture(Function(run), (torch.randn(2, 10),)))
    for batch in (1, 100):
        assert cost.at({"x": (batch, 10)}).total == of(run, batch, 10).total
    one, hundred = (cost.at({"x": (batch, 10)}) for batch in (1, 100))
    assert max(one.nodes, key=lambda node: node.figures.peak_activation_bytes).name != (
        max(hundred.nodes, key=lambda node: node.figures.peak_activation_bytes).name
    )


def test_sizes_are_checked() -> None:
    cost = cost_of(capture(nn.Linear(4, 2), (torch.randn(2, 4),)))
    for sizes, message in [
        ({"y": (1, 4)}, "no input 'y'"),
        ({"input": (1, 4, 4)}, "2 dimensions"),
        ({"input": (1, 5)}, "size 4 where 5"),
        ({}, "give its shape"),
    ]:
        with pytest.raises(InputError, match=message):
            cost.at(sizes)  # type: ignore[arg-type]


def test_modules_add_up_and_rows_are_plain() -> None:
    cost = cost_of(capture(resnet(), (torch.randn(2, 3, 32, 32),))).at_samples()
    modules = cost.by_module()
    parts = [name for name in modules if name.count(".") == 0 and name]
    assert modules[""] == cost.total
    assert sum(modules[name].flops for name in parts) == cost.flops
    assert modules["3"].macs == sum(modules[f"3.{name}"].macs for name in ("conv1", "conv2", "skip"))
    assert set(cost.by_module(1)) == {"", *parts}
    rows = cost.table(1)
    assert rows[0]["module"] == ""
    assert all(type(value) in (int, str) for row in rows for value in row.values())


def test_a_merged_node_belongs_to_the_innermost_or_the_shared_module() -> None:
    program = capture(nn.Sequential(nn.ReLU()), (torch.randn(2, 4),))
    node = next(node for node in program.graphs["main"].nodes if node.op == "call_function")
    for paths, wanted in [(("a", "a.b", ""), "a.b"), (("a.b", "a.c"), "a"), (("a.bc", "a.b"), "a"), (("a", "b"), "")]:
        node.meta["provenance"] = Provenance(tuple(Origin(path) for path in paths), "capture")
        assert cost_of(program).nodes[0].module == wanted


@pytest.mark.slow
def test_a_graph_of_100_000_nodes_takes_seconds() -> None:
    program = chain(100_000)
    start = time.process_time()
    assert cost_of(program).flops == 100_000 * 16
    assert time.process_time() - start < 10


def chain(length: int) -> Program:
    program = capture(nn.ReLU(), (torch.randn(4, 4),), dynamic_shapes=({},))
    graph = program.graphs["main"]
    last = next(node for node in graph.nodes if node.op == "call_function")
    output, value = graph.output_node(), last.meta["val"]
    with graph.inserting_before(output):
        for _ in range(length - 1):
            new: fx.Node = graph.call_function(torch.ops.aten.relu.default, (last,))
            new.meta = {"val": value, "provenance": last.meta["provenance"], "name": new.name}
            last = new
    output.args = ({"output": last},)
    return program
