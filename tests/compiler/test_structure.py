"""Pytrees with named leaves: flatten and unflatten, in this process and in one that lacks the class."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.compiler.errors import InputError
from burnish.compiler.structure import Container, Leaf, Literal, flatten, leaf_names, structure_of, unflatten


class Pair(NamedTuple):
    first: Any
    second: Any


def describe(value: Any) -> Any:
    leaves = torch.utils._pytree.tree_leaves(value)
    return structure_of(value, iter([Leaf(f"v{index}") for index in range(len(leaves))]))


_trees = st.recursive(
    st.integers(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)


@given(_trees)
def test_unflatten_undoes_flatten(tree: Any) -> None:
    structure = describe(tree)
    values = flatten(structure, tree)
    assert list(values) == list(leaf_names(structure))
    again = unflatten(structure, values)
    assert again == tree
    assert type(again) is type(tree)


def test_a_class_that_is_not_known_becomes_a_dict() -> None:
    structure = Container("nowhere.Output", ("logits", "loss"), (Leaf("a"), Literal(None)), "null")
    assert unflatten(structure, {"a": 1}) == {"logits": 1, "loss": None}
    assert flatten(structure, {"loss": None, "logits": 1}) == {"a": 1}


def test_an_ordered_dict_keeps_its_class() -> None:
    tree = collections.OrderedDict(b=1, a=2)
    structure = describe(tree)
    assert type(unflatten(structure, flatten(structure, tree))) is collections.OrderedDict


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (((1, 2), {}), r"inputs\[0\] must have 1 items, but has 2 items"),
        (((1,), {"x": 1}), r"inputs\[1\] must have 0 items, but has \['x'\]"),
        (([1], {}), None),
        ((1, {}), r"inputs\[0\] must be a tuple, but is int"),
    ],
)
def test_differences_are_named_by_their_path(value: Any, message: str | None) -> None:
    structure = describe(((1,), {}))
    if message is None:
        assert flatten(structure, value) == {"v0": 1}
    else:
        with pytest.raises(InputError, match=message):
            flatten(structure, value)


def test_a_literal_must_stay() -> None:
    structure = Container("tuple", (), (Leaf("x"), Literal(3)))
    assert flatten(structure, (1, 3)) == {"x": 1}
    with pytest.raises(InputError, match="was 3 at capture and is 4 now"):
        flatten(structure, (1, 4))
