"""Operators by name, and their arguments by schema."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from burnish.compiler.errors import BurnishError
from burnish.compiler.operators import arguments, find_operator, is_mutating, is_random, operator_name

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (aten.conv2d.default, "aten.conv2d"),
        (aten.add.Tensor, "aten.add.Tensor"),
        (aten.__and__.Tensor, "aten.__and__.Tensor"),
        (operator.getitem, "getitem"),
        (operator.floordiv, "py.floordiv"),
        (torch.sym_max, "sym.max"),
        (torch.ops.higher_order.cond, "higher_order.cond"),
    ],
)
def test_names_go_both_ways(target: object, name: str) -> None:
    assert operator_name(target) == name  # type: ignore[arg-type]
    assert find_operator(name) is target


@pytest.mark.parametrize(
    "name", ["", "aten", "aten.nonsense", "aten.add.nonsense", "os.system", "py.exec", "aten.__class__", "a.b.c.d", "."]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(BurnishError, match="no operator is called"):
        find_operator(name)


def test_quantized_decomposed_is_found_without_an_import() -> None:
    assert operator_name(find_operator("quantized_decomposed.quantize_per_tensor")).startswith("quantized_decomposed.")


def _call(target: object, *args: object, **kwargs: object) -> fx.Node:
    graph = fx.Graph()
    x = graph.placeholder("x")
    return graph.call_function(target, (x, *args), kwargs)  # type: ignore[arg-type]


def test_arguments_have_names_and_defaults() -> None:
    node = _call(aten.softmax.int, 1)
    assert {name: value for name, value in arguments(node).items() if name != "self"} == {"dim": 1, "dtype": None}


def test_dropout_is_random_only_when_it_drops() -> None:
    assert is_random(_call(aten.dropout.default, 0.5, True))
    assert not is_random(_call(aten.dropout.default, 0.5, False))
    assert not is_random(_call(aten.relu.default))
    assert is_random(_call(aten.rand_like.default))
    assert not is_random(_call(aten.scaled_dot_product_attention.default, None, None))


def test_mutation_is_read_from_the_schema() -> None:
    assert is_mutating(aten.add_.Tensor)
    assert not is_mutating(aten.add.Tensor)
    assert not is_mutating(operator.add)
