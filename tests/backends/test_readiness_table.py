"""The table of what TensorRT takes: its words exist, and releases only ever take more."""

from __future__ import annotations

import itertools

import onnx
import pytest

from burnish.backends.readiness.nodes import dtype_name
from burnish.backends.readiness.table import releases, table_of
from burnish.compiler.errors import OptionError

# Operators of the parser that ONNX does not have, or has no more.
OUTSIDE = {"ImageScaler", "ParametricSoftplus", "ScaledTanh", "Swish", "TensorScatter"}


def test_every_operator_is_one_of_onnx() -> None:
    known = {each.name for each in onnx.defs.get_all_schemas_with_history() if each.domain == ""}
    newest = table_of(releases()[-1])
    named = {*newest.operators, *newest.refused, *newest.restrictions, *newest.shape_operands, *newest.shape_operators}
    named |= {*newest.layers, *newest.readers, *newest.movers, *newest.fixes}
    assert named - known <= OUTSIDE
    assert not newest.refused & set(newest.operators)
    assert newest.movers < newest.readers and newest.layers < newest.readers


def test_restrictions_name_inputs_and_attributes_that_exist() -> None:
    for name, rules in table_of(releases()[0]).restrictions.items():
        if name in OUTSIDE:
            continue
        schema = onnx.defs.get_schema(name, onnx.defs.onnx_opset_version(), "")
        for rule in rules:
            attributes = {*rule.absent, rule.attribute, rule.halves} - {""}
            assert rule.fixed in ("", "all", "axis")
            assert attributes <= set(schema.attributes), name
            assert all(index < len(schema.inputs) for index in (*rule.constant, *rule.needed, *rule.unused_inputs))
            assert all(index < len(schema.outputs) for index in rule.unused_outputs)


def test_element_types_are_those_of_onnx() -> None:
    known = {dtype_name(number) for number in onnx.TensorProto.DataType.values() if number}
    for release in releases():
        table = table_of(release)
        assert all(types <= known and types for types in table.operators.values())
        assert table.types | table.ends <= known


def test_a_release_takes_what_the_one_before_takes() -> None:
    tables = [table_of(release) for release in releases()]
    for before, after in itertools.pairwise(tables):
        assert set(before.operators) <= set(after.operators)
        assert before.opset <= after.opset
    assert "Attention" not in table_of("10.13").operators and "Attention" in table_of("10.14").operators
    assert "RMSNormalization" not in table_of("10.14").operators and "RMSNormalization" in table_of("10.15").operators


def test_a_major_release_stands_for_its_oldest() -> None:
    assert table_of("11").release == "11.0"
    assert table_of("10").release == "10.12"


def test_an_unknown_release_is_refused() -> None:
    with pytest.raises(OptionError, match=r"nothing is known of TensorRT 9\.3: there are 10\.12"):
        table_of("9.3")
