"""The text form: round trips, what is printed, and the errors of the parser."""

from __future__ import annotations

import time

import pytest
import torch
from text_models import NAMES, SMALL, captured, leaves
from torch import fx

from burnish.compiler import interpreter
from burnish.compiler.errors import TextError
from burnish.compiler.facts import Fact
from burnish.compiler.parser import parse_program
from burnish.compiler.printer import print_node, print_program, symbol_names
from burnish.compiler.program import Program
from burnish.compiler.provenance import Origin, provenance_of
from burnish.compiler.types_text import format_type


def one(body: str, inputs: str = "%x: f32[B, 3]", head: str = "") -> str:
    return f"# burnish 1\n{head}graph main({inputs}) {{\n{body}\n}}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_model_round_trips(name: str) -> None:
    text = print_program(captured(name))
    again = parse_program(text)
    assert print_program(again) == text
    assert again.signature == captured(name).signature


@pytest.mark.parametrize("name", NAMES)
def test_a_parsed_model_computes_what_the_captured_one_does(name: str) -> None:
    program = captured(name)
    again = parse_program(print_program(program), program.constants)
    expected, state = interpreter.run(program, program.samples)
    actual, again_state = interpreter.run(again, program.samples)
    torch.testing.assert_close(list(leaves(actual)), list(leaves(expected)), rtol=0, atol=0)
    torch.testing.assert_close(again_state, state, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_parsed_model_runs_on_its_random_samples(name: str) -> None:
    again = parse_program(print_program(captured(name)), seed=1)
    outputs, _ = interpreter.run(again, again.samples)
    assert list(leaves(outputs))


def test_the_text_of_a_small_program_is_what_the_page_says() -> None:
    program = parse_program(SMALL)
    assert print_program(program) == SMALL
    relu = list(program.graphs["main"].nodes)[-2]
    assert print_node(relu, symbol_names(program)) == "%z = aten.relu(%y) : f32[B, 4]"
    assert print_node(relu) == "%z = aten.relu(%y) : f32[S0, 4]"


def test_order_is_canonical_whatever_the_text_says() -> None:
    lines = ["  %b = aten.relu(%x) : f32[B, 3]", "  %a = aten.sigmoid(%x) : f32[B, 3]"]
    end = "  %c = aten.add.Tensor(%a, %b) : f32[B, 3]\n  return %c"
    first = print_program(parse_program(one("\n".join([*lines, end]))))
    assert first == print_program(parse_program(one("\n".join([*reversed(lines), end]))))


def test_a_defaulted_argument_is_not_printed_and_a_number_of_another_type_is() -> None:
    body = "  %y = aten.add.Tensor(%x, 1, alpha=1) : f32[B, 3]\n  %z = aten.add.Tensor(%y, 1.0, alpha=2)\n  return %z"
    text = print_program(parse_program(one(body)))
    assert "aten.add.Tensor(%x, 1) :" in text
    assert "aten.add.Tensor(%y, 1.0, alpha=2) : f32[B, 3]" in text


@pytest.mark.parametrize(
    "line",
    [
        '%y = aten.zeros(size=[2, 3], dtype=bf16, device="cpu", pin_memory=False) : bf16[2, 3]',
        "%y = aten.full(size=[2], fill_value=-inf) : f32[2]",
        "%y = aten.full(size=[2], fill_value=nan) : f32[2]",
        "%y = aten.full(size=[2], fill_value=1e-05) : f32[2]",
        "%y = aten.full(size=[2], fill_value=True) : b1[2]",
        "%y = aten.mul.Scalar(%x, other=complex(0.0, -1.0)) : c64[B, 3]",
        "%y = aten.clone(%x, memory_format=contiguous_format) : f32[B, 3]",
        "%y = aten.empty_like(%x, layout=strided) : f32[B, 3]",
        '%y = aten.gelu(%x, approximate="tanh") : f32[B, 3]',
        "%y = aten.index.Tensor(%x, [None, @i]) : f32[B, 2]",
        "%y = aten.cat([%x, %x], dim=-1) : f32[B, 6]",
        '%"y/0 z" = aten.relu(%x) : f32[B, 3]',
    ],
)
def test_arguments_round_trip(line: str) -> None:
    name = line.split(" = ")[0]
    constant = "constant @i: i64[2]\n" if "@i" in line else ""
    inputs = "%x: f32[B, 3]"
    text = one(f"  {line}\n  return {name}", inputs, constant)
    assert print_program(parse_program(text)) == text


@pytest.mark.parametrize(
    "sizes",
    [
        "2*B",
        "B + 1",
        "B - 1",
        "B//2",
        "(B + 1)//2",
        "Mod(B, 4)",
        "Max(5, B)",
        "Min(8, B)",
        "B*S0",
        "B**2",
        "B + S0 - 2",
        "2*S0 + B//3",
        "-B + 9",
    ],
)
def test_symbolic_sizes_round_trip(sizes: str) -> None:
    text = one("  %z = aten.relu(%y)\n  return %z", f"%x: f32[B, S0], %y: f32[{sizes}]")
    once = print_program(parse_program(text))
    assert f"%z = aten.relu(%y) : f32[{sizes}]" in once
    assert print_program(parse_program(once)) == once


def test_ranges_history_facts_and_parameters_round_trip() -> None:
    head = "# passes: canonicalize,prune{ratio=0.4,round_to=8},repeat{max=4}(cse,dce)\n# facts: a,b\n"
    head += 'dims B: 2..512\ndims S0: 1..inf\nparameters (x, mask)\noutputs {"o 1": %output, k: [None]}\n'
    text = one("  return %x", "%x: f32[B, S0]", head)
    program = parse_program(text)
    assert print_program(program) == text
    assert program.history == ("canonicalize", "prune{ratio=0.4,round_to=8}", "repeat{max=4}(cse,dce)")
    assert program.facts == {Fact("a"), Fact("b")}
    assert program.signature.parameters == ("x", "mask")


def test_a_registered_class_round_trips() -> None:
    text = print_program(captured("bert"))
    assert 'outputs !"' in text
    assert "last_hidden_state: %" in text


def test_stages_round_trip_and_run() -> None:
    text = """# burnish 1
constant @w: f32[3, 3]
graph first(%x: f32[B, 3]) {
  %h = aten.linear(%x, @w) : f32[B, 3]
  %i = aten.nonzero(%h) : i64[U0, 2]
  return hidden=%h, found=%i
}
graph second(%hidden: f32[B, 3], %found: i64[U0, 2], %y: f32[B, 3]) {
  %s = aten.add.Tensor(%hidden, %y) : f32[B, 3]
  %j = aten.mul.Tensor(%found, 2) : i64[U0, 2]
  return sum=%s, twice=%j
}
"""
    program = parse_program(text)
    assert print_program(program) == text
    assert list(program.samples) == ["x", "y"]
    x, y = program.samples.values()
    total, twice = program(x, y)
    torch.testing.assert_close(total, x @ program.constants["w"].T + y)
    assert twice.shape == (6, 2)


def test_seeded_constants_depend_on_their_name_alone() -> None:
    other = SMALL.replace("constant @w", "constant @v: f32[9]\nconstant @w")
    assert torch.equal(parse_program(SMALL).constants["w"], parse_program(other).constants["w"])
    assert not torch.equal(parse_program(SMALL).constants["w"], parse_program(SMALL, seed=1).constants["w"])
    variance = parse_program(SMALL.replace("f32[4, 3]", "f32[4, 3]\nconstant @a.running_var: f32[50]"))
    assert variance.constants["a.running_var"].min() > 0.5


def test_literals_and_given_constants() -> None:
    text = SMALL.replace("f32[4, 3]", "f32[4, 3]\nconstant @s: f32[] = 2.5\nconstant @l: i64[2, 2] = [[1, 2], [3, 4]]")
    given = torch.ones(4, 3)
    program = parse_program(text, {"w": given, "unknown": given})
    assert program.constants["w"] is given
    assert program.constants["s"].item() == 2.5
    assert program.constants["l"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(TextError, match=r"type f32\[3, 3\]"):
        parse_program(text, {"w": torch.ones(3, 3)})


def test_nodes_know_their_line() -> None:
    node = list(parse_program(SMALL).graphs["main"].nodes)[-2]
    found = provenance_of(node)
    assert found is not None
    assert found.origins == (Origin("", file="<text>", line=5),)


def test_format_type() -> None:
    assert format_type(torch.zeros(3, 224, dtype=torch.bfloat16)) == "bf16[3, 224]"
    assert format_type((torch.zeros(2), torch.zeros((), dtype=torch.int64))) == "(f32[2], i64[])"
    assert [format_type(value) for value in (None, 3, 2.5, True)] == ["none", "sym(3)", "symfloat", "symbool"]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "begins with the line", 1),
        (SMALL.replace("burnish 1", "burnish 2"), "version '2' is not supported", 1),
        (SMALL.replace("aten.relu", "aten.relux"), "no operator is called 'aten.relux'", 5),
        (one('  %y = aten.zeros(size=[2], device="cup")\n  return %y'), "the device 'cup' is refused", 3),
        (SMALL.replace("relu(%y)", "relu(%q)"), "%q is not defined", 5),
        (SMALL.replace("(%x, @w)", "(%z, @w)"), "%z is used before its definition", 4),
        (SMALL.replace("%z = ", "%y = "), "%y is defined twice", 5),
        (SMALL.replace("relu(%y)", "relu(%y, 1)"), "takes 1 arguments by position, not 2", 5),
        (SMALL.replace("relu(%y)", "relu(%y, other=1)"), "no argument 'other'; it has self", 5),
        (SMALL.replace("(%x, @w)", "(%x)"), "lacks its argument 'weight'", 4),
        (SMALL.replace("(%x, @w)", "(%x, @v)"), "unknown constant @v", 4),
        (SMALL.replace("f32[B, 4]", "f32[B, 5]", 1), r"%y has type f32\[S0, 4\], not the one written", 4),
        (SMALL.replace("f32[B, 4]", "f16[B, 4]", 1), "not the one written", 4),
        (SMALL.replace("f32[B, 4]", "f32[2*B, 4]", 1), "not the one written", 4),
        (SMALL.replace("f32[B, 4]", "f32[U0, 4]", 1), "not the one written", 4),
        (SMALL.replace("f32[4, 3]", "f32[4, 7]"), "aten.linear is refused by PyTorch", 4),
        (SMALL.replace("f32[4, 3]", "q32[4, 3]"), "unknown type 'q32'", 2),
        (SMALL.replace("f32[B, 3]", "f32[B//0, 3]"), "this size has no value", 3),
        (SMALL.replace("f32[B, 3]", "f32[" + "(" * 200), "nested more than", 3),
        (SMALL.replace("  return %z\n", ""), "has no 'return'", 6),
        (SMALL.replace("}\n", ""), "is not closed", 6),
        (SMALL + SMALL.partition("\n")[2].partition("\n")[2], "stands twice", 8),
        (SMALL.replace("%z\n", "%z %y\n"), "expected ','", 6),
        (SMALL.replace("relu(%y)", "relu(§)"), "unexpected character '§'", 5),
        (SMALL.replace("# burnish 1\n", "# burnish 1\noutputs (%q, %z)\n"), "%q is not returned", 1),
        (SMALL.replace("4, 3]", "999999999, 99999]"), "refused|more random data", 2),
        (one("  %y = py.pow(9, 999999999)\n  return %x"), "takes sizes and small numbers", 3),
        (one("  %y = higher_order.cond(%x, &t, &t, (%x,))\n  return %x"), "unknown branch &t", 3),
    ],
)
def test_errors_name_the_reason_and_the_place(text: str, message: str, line: int) -> None:
    with pytest.raises(TextError, match=message) as caught:
        parse_program(text)
    assert caught.value.line == line or "refused|" in message
    assert caught.value.column >= 1
    if text:
        assert str(caught.value).endswith("^")


def chain(count: int) -> str:
    lines = ["# burnish 1", "constant @w: f32[8, 8]", "graph main(%x: f32[B, 8]) {"]
    previous = "x"
    for index in range(count // 2):
        lines.append(f"  %layer{index}.linear = aten.linear(%{previous}, @w) : f32[B, 8]")
        lines.append(f"  %layer{index}.relu = aten.relu(%layer{index}.linear) : f32[B, 8]")
        previous = f"layer{index}.relu"
    return "\n".join([*lines, f"  return %{previous}", "}", ""])


def test_printing_and_parsing_are_linear() -> None:
    def seconds(count: int) -> tuple[float, float]:
        text = chain(count)
        start = time.process_time()
        program = parse_program(text)
        middle = time.process_time()
        assert print_program(program) == text
        return middle - start, time.process_time() - middle

    seconds(100)
    # The best of three: other work on the machine slows caches, which processor time includes.
    small, large = (tuple(map(min, zip(*(seconds(count) for _ in range(3)), strict=True))) for count in (1_000, 8_000))
    # Eight times the nodes; a quadratic step would take 64 times as long.
    assert large[0] < 24 * small[0]
    assert large[1] < 24 * small[1]


def test_equal_structure_prints_equally_after_a_copy() -> None:
    program: Program = captured("net")
    assert print_program(program.copy()) == print_program(program)
    assert all(isinstance(graph, fx.Graph) for _, graph in program.copy().all_graphs())
