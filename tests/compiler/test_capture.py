"""Capture: signatures, containers, dynamic sizes, what is left untouched, and what is refused."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import burnish
from burnish import CaptureError, InputError
from burnish.compiler.verify import verify


def check(model, inputs, *others):
    """Capture `model`, verify, and compare with it on `inputs` and `others`; return the Program."""
    before = copy.deepcopy(inputs)
    program = burnish.capture(model, inputs)
    verify(program, 3)
    for each in (inputs, *others):
        expected, actual = call(model, copy.deepcopy(each)), call(program, copy.deepcopy(each))
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)
    return program


@torch.no_grad()
def call(function, inputs):
    return function(**inputs) if isinstance(inputs, dict) else function(*inputs)


class Function(nn.Module):
    """A module with one linear layer, whose forward is a given function of it."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(self.linear, *args, **kwargs)


def batch(size):
    return (torch.randn(size, 4),)


def test_captured_with_two_runs_with_one_three_and_seventeen():
    assert check(nn.Linear(4, 3), batch(2), batch(1), batch(3), batch(17)).notes == ()


def test_captured_with_one_runs_with_more():
    model = Function(lambda linear, x: linear(x).view(x.shape[0], 2, 2).mean(0, keepdim=True) + x.view(-1, 2, 2))
    assert check(model, batch(1), batch(2), batch(5)).notes == ()


def test_zero_dimensional_inputs_have_no_batch():
    check(Function(lambda linear, x, scale: linear(x) * scale), (torch.randn(2, 4), torch.tensor(2.0)))


def test_only_the_input_that_the_model_depends_on_is_static():
    class Loop(nn.Module):
        def forward(self, x, y):
            return x + sum(y[index] for index in range(y.shape[0]))

    inputs = (torch.randn(2, 4), torch.randn(3, 4))
    program = check(Loop(), inputs, (torch.randn(7, 4), inputs[1]))
    assert [note for note in program.notes if "dimension 0" in note] == [
        "input 'y': dimension 0 is fixed at 3, the model depends on it"
    ]
    with pytest.raises(InputError, match="captured with 3"):
        program(torch.randn(7, 4), torch.randn(4, 4))


def test_one_batch_size_where_sizes_would_be_ratios():
    class Cross(nn.Module):
        def forward(self, x, y):
            rows = x.shape[0]
            return torch.bmm(x.view(rows, -1, 4), y.view(rows, -1, 4).transpose(1, 2))

    pair = lambda size: (torch.randn(size, 3, 4), torch.randn(size, 5, 4))  # noqa: E731
    program = check(Cross(), pair(2), pair(3))
    assert "all inputs must have one batch size" in program.notes


def test_dynamic_shapes_are_passed_on():
    length = torch.export.Dim("length", min=2, max=50)
    program = burnish.capture(nn.Linear(4, 4), (torch.randn(2, 6, 4),), dynamic_shapes=({1: length},))
    assert program(torch.randn(2, 9, 4)).shape == (2, 9, 4)
    with pytest.raises(InputError, match="dimension 0"):
        program(torch.randn(3, 9, 4))


def test_dynamic_shapes_that_do_not_fit_are_named():
    length = torch.export.Dim("length")
    first_eight = Function(lambda linear, x: linear(x) + torch.zeros(8, 4)[: x.shape[1]])
    x = torch.randn(2, 6, 4)
    with pytest.raises(CaptureError, match=r"(?s)with these dynamic_shapes\n.*values of length.* min\(8.*remedy.*max="):
        burnish.capture(first_eight, (x,), dynamic_shapes=(({1: length},),))
    with pytest.raises(CaptureError, match=r"(?s)with these dynamic_shapes\n.*expected None, an int, a Dim"):
        burnish.capture(first_eight, (x,), dynamic_shapes=(({1: "length"},),))


def test_numbers_are_part_of_the_capture():
    program = check(Function(lambda linear, x, power: linear(x) ** power), (torch.randn(2, 4), 3))
    with pytest.raises(InputError, match="3"):
        program(torch.randn(2, 4), 2)


def test_lists_and_dicts_of_tensors():
    def forward(linear, parts, named):
        return {"sum": linear(parts[0]) + named["b"], "list": [parts[1], None, (named["a"], 3)]}

    def inputs(size):
        return [torch.randn(size, 4), torch.randn(size, 2)], {"a": torch.randn(size), "b": torch.randn(size, 4)}

    check(Function(forward), inputs(2), inputs(5))


def test_one_tensor_for_several_inputs():
    model, one = Function(lambda linear, x, rest: linear(x) * 2 + rest[0] * rest[1]), torch.randn(2, 4)
    check(model, (one, [one, one]), (torch.randn(2, 4), [torch.randn(2, 4), torch.randn(2, 4)]))


@torch.no_grad()
def test_a_weight_of_the_model_as_an_input():
    model = Function(lambda linear, x: linear(x) * linear.weight)
    check(model, (model.linear.weight,), (torch.randn(4, 4),))
    assert nn.Parameter not in torch.utils._pytree.SUPPORTED_NODES


def test_keyword_only_parameters():
    class KeywordOnly(nn.Module):
        def forward(self, *, left, right):
            return left @ right.mT

    pair = lambda size: {"right": torch.randn(size, 3), "left": torch.randn(size, 3)}  # noqa: E731
    check(KeywordOnly(), pair(2), pair(3))


def test_variable_parameters():
    class Variable(nn.Module):
        def forward(self, first, *rest, scale=2.0, **named):
            return first * scale + sum(rest) + named["extra"]

    named = lambda size: {"first": torch.randn(size, 4), "extra": torch.randn(size, 4)}  # noqa: E731
    check(Variable(), named(2), named(5))


def test_variable_positional_parameters():
    check(Function(lambda linear, *parts: linear(sum(parts))), (torch.randn(2, 4),) * 3, (torch.randn(3, 4),) * 3)


@dataclass
class Pair:
    """A dataclass that nobody registered."""

    left: torch.Tensor
    right: torch.Tensor | None = None


class Store:
    """A plain object that holds tensors among other things, as a key-value cache does."""

    def __init__(self):
        self.states, self.label, self.inner = {}, "store", None


def test_an_unregistered_dataclass_comes_out():
    program = burnish.capture(Function(lambda linear, x: Pair(linear(x))), batch(2))
    result = program(torch.randn(3, 4))
    assert isinstance(result, Pair) and result.left.shape == (3, 4) and result.right is None


def test_a_plain_object_with_tensors_comes_out():
    def forward(linear, x):
        outer = Store()
        outer.states[0], outer.inner = linear(x), Store()
        outer.inner.states["a"] = x + 1
        return {"y": x, "store": outer}

    model = Function(forward)
    x = torch.randn(3, 4)
    result = burnish.capture(model, batch(2))(x)["store"]
    assert type(result) is Store and result.label == "store"
    torch.testing.assert_close(result.states[0], model.linear(x))
    torch.testing.assert_close(result.inner.states["a"], x + 1)


def test_a_plain_object_with_tensors_goes_in():
    def forward(linear, x, store):
        return linear(x) + store.states["past"]

    def inputs(size):
        store = Store()
        store.states["past"] = torch.randn(size, 4)
        return torch.randn(size, 4), store

    model, wide = Function(forward), inputs(3)
    torch.testing.assert_close(burnish.capture(model, inputs(2))(*wide), model(*wide))


def test_contexts_are_inlined():
    def forward(linear, x):
        with torch.no_grad():
            y = linear(x)
        with torch.autocast("cpu", enabled=False):
            return y.detach() + linear(x)

    text = check(Function(forward), batch(2), batch(3)).print()
    assert "higher_order" not in text and "detach" not in text


def test_constants_made_in_forward_under_in_place_operators():
    def forward(linear, x):
        y = linear(x) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        y.mul_(torch.tensor(2.0)).relu_()
        return torch.cat([torch.tensor([]), y], -1)

    assert "_(" not in check(Function(forward), batch(2), batch(3)).print()


def test_a_dropped_alias_may_be_an_output():
    def forward(linear, x):
        with torch.autocast("cpu", enabled=False):
            y = nn.functional.dropout(linear(x), training=False)
        return y, y + 1

    check(Function(forward), batch(2), batch(3))


def test_vmap_masks():
    def forward(linear, x):
        mask = torch.vmap(lambda row: torch.vmap(lambda column: row >= column)(torch.arange(4)))(torch.arange(4))
        return linear(x) @ mask.float()

    check(Function(forward), batch(2), batch(3))


def test_a_branch_on_the_data_with_cond():
    def forward(linear, x):
        return torch.cond(x.sum() > 0, lambda v: linear(v).relu(), lambda v: v - 1, (x,))

    check(Function(forward), (torch.ones(2, 4),), (-torch.ones(3, 4),))


def test_tied_weights_are_one_constant():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    program = check(model, batch(2))
    assert program.parameter_count() == 16 and len(program.used_constants()) == 1


def test_buffers_that_forward_updates():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("table", torch.arange(4.0), persistent=False)

        def forward(self, x):
            self.calls += 1
            return x * self.calls + self.table

    model = Counter()
    program = burnish.capture(model, batch(2))
    x = torch.ones(2, 4)
    assert torch.equal(program(x), 1 + torch.arange(4.0).expand(2, 4))
    assert torch.equal(program(x), 2 + torch.arange(4.0).expand(2, 4))
    assert model.calls == 0


def test_an_updated_buffer_neither_fixes_a_size_nor_changes():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("shift", torch.zeros(4))

        def forward(self, x):
            self.shift.add_(1)
            return self.linear(x) + self.shift

    model = Shifted()
    program = burnish.capture(model, (torch.randn(2, 3, 4),))
    assert torch.equal(model.shift, torch.zeros(4))
    x = torch.randn(1, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model.linear(x) + 1)


def test_parametrizations_and_hooks_are_part_of_the_graph():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)),
    ).eval()
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    model[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    check(model, batch(2), batch(3))


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    weight = model[0].weight
    check(model, batch(2), batch(3))
    assert model[0].weight is weight and weight.is_inference()


def test_capture_works_in_inference_mode():
    with torch.inference_mode():
        program = burnish.capture(nn.Linear(4, 4), batch(2))
        assert program(torch.randn(3, 4)).shape == (3, 4)


def test_a_write_to_an_input_is_dropped_and_told():
    model = Function(lambda linear, x: linear(x.mul_(2)))
    x = torch.randn(2, 4)
    kept = x.clone()
    program = burnish.capture(model, (x,))
    assert torch.equal(x, kept)
    assert any("writes to its input" in note for note in program.notes)
    torch.testing.assert_close(program(x), model.linear(kept * 2))
    assert torch.equal(x, kept)


class Messy(nn.Module):
    """Trains, counts, draws random numbers, and keeps tensors in an attribute and in a list."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.frozen = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.cache, self.seen = None, []

    def forward(self, x):
        self.steps += 1
        self.cache = x * 2
        self.seen.append(self.cache)
        return self.dropout(self.norm(self.frozen(x))) + self.cache


def test_the_model_is_left_as_it_was():
    model = Messy().train()
    model.frozen.eval()
    hook = model.norm.register_forward_hook(lambda module, args, output: output)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = dict(model.norm._forward_hooks)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    burnish.capture(model, (torch.ones(2, 4),))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.norm._forward_hooks == hooks and hook.id in model.norm._forward_hooks
    assert model.cache is None and model.seen == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert model(torch.randn(2, 4)).shape == (2, 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_symbolic_trace_where_export_refuses():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.scripted, self.norm = torch.jit.script(nn.Linear(4, 4)), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.scripted(x)).view(x.shape[0], 2, 2)

    model = Half().eval()
    with pytest.raises(TypeError, match="positional arguments"):
        torch.export.export(model, batch(2))
    # TorchScript cannot run on symbolic sizes, and the notes say what follows from it.
    program = check(model, batch(2), batch(2))
    assert any("dimension 0 is fixed at 2" in note for note in program.notes)


class Branches(nn.Module):
    """Refused by export and by symbolic tracing."""

    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def test_both_refusals_are_told_with_module_and_line():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Branches()))
    with pytest.raises(CaptureError, match=r"in 1\.1 \(Branches\), .*test_capture\.py:\d+") as caught:
        burnish.capture(model, batch(2))
    message = str(caught.value)
    assert "torch.export: " in message and "torch.fx.symbolic_trace: " in message and "torch.cond" in message
    assert caught.value.__cause__ is not None


def test_an_exported_program_is_taken_and_left_alone():
    model = Function(lambda linear, x: linear(x).add_(torch.tensor(1.0)))
    exported = torch.export.export(model, batch(2))
    nodes = [node.format_node() for node in exported.graph.nodes]
    x = torch.randn(2, 4)
    torch.testing.assert_close(burnish.capture(exported)(x), model(x))
    assert [node.format_node() for node in exported.graph.nodes] == nodes


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [(None, "needs example inputs"), (torch.zeros(2, 4), r"inputs=\(x,\)"), ((3,), "no tensor"), ("x", "str")],
)
def test_unusable_inputs(inputs, reason):
    with pytest.raises(InputError, match=reason):
        burnish.capture(nn.Linear(4, 4), inputs)


def test_no_model():
    with pytest.raises(InputError, match="not function"):
        burnish.capture(lambda x: x, batch(2))
