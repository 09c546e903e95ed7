"""The semantic difference: every kind of change, and what is no change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import Command

from burnish.compiler.program import Program
from burnish.tools.diff import Change, diff_programs

TEXT = """# burnish 1
constant @w: f32[3, 4]
graph main(%x: f32[B, 4], %y: f32[B, 3]) {
  %fc = aten.linear(%x, @w) : f32[B, 3]
  %sum = aten.add.Tensor(%fc, %y) : f32[B, 3]
  %act = aten.leaky_relu(%sum, negative_slope=0.2) : f32[B, 3]
  return %act
}
"""


def changes(old: str, new: str, text: str = TEXT, **options: bool) -> tuple[Change, ...]:
    assert old in text
    return diff_programs(Program.parse(text), Program.parse(text.replace(old, new)), **options).changes


def test_a_program_equals_itself_whatever_made_it() -> None:
    program = Program.parse(TEXT)
    other = Program.parse(TEXT.replace("# burnish 1\n", "# burnish 1\n# passes: cse\n").replace("B", "N"))
    assert not diff_programs(program, other)
    assert diff_programs(program, other).to_json() == {"equal": True, "changes": []}


def test_another_operator() -> None:
    (change,) = changes("aten.add.Tensor", "aten.sub.Tensor")
    assert (change.what, change.kind, change.graph, change.name) == ("node", "changed", "main", "sum")
    assert change.detail == ("operator: aten.add.Tensor -> aten.sub.Tensor",)


def test_another_argument_and_one_at_its_default() -> None:
    (change,) = changes("negative_slope=0.2", "negative_slope=0.3")
    assert change.detail == ("argument negative_slope: 0.2 -> 0.3",)
    (change,) = changes("(%sum, negative_slope=0.2)", "(%sum)")
    assert change.detail == ("argument negative_slope: 0.2 -> 0.01",)


def test_a_default_that_is_written_is_no_change() -> None:
    assert not changes("aten.add.Tensor(%fc, %y)", "aten.add.Tensor(%fc, %y, alpha=1)")


def test_swapped_operands() -> None:
    (change,) = changes("(%fc, %y)", "(%y, %fc)")
    assert change.detail == ("argument self: %fc -> %y", "argument other: %y -> %fc")


def test_types_of_inputs_and_nodes() -> None:
    found = changes("f32", "f64")
    kinds = {(each.what, each.name): each.detail for each in found}
    assert kinds["input", "x"] == ("type: f32[B, 4] -> f64[B, 4]",)
    assert kinds["node", "act"] == ("type: f32[B, 3] -> f64[B, 3]",)
    assert kinds["constant", "w"] == ("type: f32[3, 4] -> f64[3, 4]",)


def test_an_inserted_node_is_one_added_and_its_users_changed() -> None:
    line = "  %sum ="
    found = changes(line, "  %neg = aten.neg(%y) : f32[B, 3]\n  %sum =")
    assert [(each.kind, each.name, each.detail) for each in found] == [
        ("added", "neg", ("%neg = aten.neg(%y) : f32[B, 3]",))
    ]
    removed = diff_programs(Program.parse(TEXT.replace(line, "  %neg = aten.neg(%y) : f32[B, 3]\n" + line)),
                            Program.parse(TEXT)).changes  # fmt: skip
    assert [(each.kind, each.name) for each in removed] == [("removed", "neg")]


def test_the_order_of_lines_does_not_count() -> None:
    first, second = "  %a = aten.neg(%y) : f32[B, 3]\n", "  %b = aten.abs(%y) : f32[B, 3]\n"
    texts = [TEXT.replace("  %fc =", lines + "  %fc =") for lines in (first + second, second + first)]
    assert not diff_programs(*(Program.parse(text) for text in texts))


def test_another_output() -> None:
    (change,) = changes("return %act", "return %sum")
    assert (change.what, change.kind, change.detail) == ("output", "changed", ("value: %act -> %sum",))


def test_another_way_of_calling_is_a_change() -> None:
    found = changes("return %act", "return act=%act, more=%sum")
    assert ("signature", "changed") in [(each.what, each.kind) for each in found]
    assert ("output", "added", "more") in [(each.what, each.kind, each.name) for each in found]


def test_constants_by_name_type_and_value() -> None:
    program, other = Program.parse(TEXT), Program.parse(TEXT)
    value = program.constants["w"].clone()
    value[0, 0] += 0.5
    other.constants["w"] = value
    (change,) = diff_programs(program, other).changes
    assert (change.what, change.kind, change.name) == ("constant", "changed", "w")
    assert change.detail == ("value: 1 of 12 elements differ, by at most 0.5",)
    assert not diff_programs(program, other, values=False)
    renamed = changes("@w", "@v")
    assert {(each.what, each.kind, each.name) for each in renamed} == {
        ("node", "changed", "fc"), ("constant", "removed", "w"), ("constant", "added", "v"),
    }  # fmt: skip


def test_values_are_compared_bit_by_bit() -> None:
    program, same, other = (Program.parse(TEXT) for _ in range(3))
    nan = torch.full((3, 4), float("nan"))
    program.constants["w"], same.constants["w"] = nan, nan.clone()
    assert not diff_programs(program, same)
    program.constants["w"], other.constants["w"] = torch.zeros(3, 4), -torch.zeros(3, 4)
    assert diff_programs(program, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.bool, torch.uint8])
def test_values_of_other_dtypes(dtype: torch.dtype) -> None:
    short = {torch.bfloat16: "bf16", torch.float16: "f16", torch.complex64: "c64", torch.bool: "b1", torch.uint8: "u8"}
    text = f"""# burnish 1
constant @w: {short[dtype]}[3]
graph main(%x: {short[dtype]}[3]) {{
  %eq = aten.eq.Tensor(%x, @w) : b1[3]
  return %eq
}}
"""
    program, other = Program.parse(text), Program.parse(text)
    program.constants["w"] = torch.tensor([0, 1, 0]).to(dtype)
    other.constants["w"] = torch.tensor([0, 1, 1]).to(dtype)
    (change,) = diff_programs(program, other).changes
    assert "1 of" in change.detail[0]
    other.constants["w"] = program.constants["w"].clone()
    assert not diff_programs(program, other)


def test_graphs_that_are_there_once() -> None:
    more = TEXT + "graph tail(%act: f32[B, 3]) {\n  %n = aten.neg(%act) : f32[B, 3]\n  return n=%n\n}\n"
    found = diff_programs(
        Program.parse(TEXT.replace("return %act", "return act=%act")),
        Program.parse(more.replace("return %act", "return act=%act")),
    ).changes
    assert ("graph", "added", "tail", ("1 nodes",)) in [
        (each.what, each.kind, each.name, each.detail) for each in found
    ]


def test_the_command(burnish: Command, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text(TEXT)
    second.write_text(TEXT.replace("add", "sub").replace("  %act", "  %extra = aten.neg(%y) : f32[B, 3]\n  %act"))
    assert burnish("diff", first, first).exit_code == 0
    assert burnish("diff", first, first).stdout == ""
    result = burnish("diff", first, second)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "~ node sum",
        "    operator: aten.add.Tensor -> aten.sub.Tensor",
        "+ node %extra = aten.neg(%y) : f32[B, 3]",
    ]
    data = json.loads(burnish("diff", first, "-", "--json", stdin=second.read_text()).stdout)
    assert [each["name"] for each in data["changes"]] == ["sum", "extra"]


def test_a_text_beside_a_file_compares_types_alone(burnish: Command, saved: Path, tmp_path: Path) -> None:
    text = tmp_path / "net.txt"
    program = Program.load(saved)
    text.write_text(program.print())
    assert burnish("diff", saved, text).exit_code == 0
    program.constants["conv.bias"] = program.constants["conv.bias"] + 1
    program.save(tmp_path / "other.burnish")
    result = burnish("diff", saved, tmp_path / "other.burnish")
    assert result.exit_code == 1
    assert result.stdout.startswith("~ constant conv.bias\n    value: 4 of 4 elements differ")
