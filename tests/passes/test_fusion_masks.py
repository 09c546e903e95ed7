"""Index values against what operators really compute, and attention with masks that are built from them at random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import fx

from burnish import Context, Pipeline, Program, VerificationError
from burnish.compiler.graphs import calls, name_of
from burnish.compiler.operators import find_operator
from burnish.compiler.pipeline import run_pipeline
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.types import shape_of, tensor_of
from burnish.passes.fusion.index_analysis import value_of
from burnish.passes.fusion.index_values import Choice, Grid, Linear, Value, aligned, settled
from tests.fusion_variants import fuse, operators

_SIZES = ((2, 3), (1, 1), (3, 2), (1, 6), (5, 4), (2, 0), (0, 2))
_SETTINGS = settings(
    max_examples=25,
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_TEXT = """# burnish 1
# facts: canonical
graph main(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %seen: b1[B, S]) {
  %b = aten.sym_size.int(%seen, dim=0) : sym(B)
  %s = aten.sym_size.int(%seen, dim=1) : sym(S)
  %batch = aten.arange(end=%b) : i64[B]
  %queries = aten.arange(end=%s) : i64[S]
  %keys = aten.arange(end=%s) : i64[S]
  %few = aten.arange(end=5) : i64[5]
  %odd = aten.pow.Tensor_Scalar(%few, exponent=2) : i64[5]
  %true = aten.ones(size=[%b, %s], dtype=b1) : b1[B, S]
  %row = aten.unsqueeze(%keys, dim=0) : i64[1, S]
  %column = aten.unsqueeze(%queries, dim=1) : i64[S, 1]
  %causal = aten.le.Tensor(%row, %column) : b1[S, S]
  %later = aten.gt.Tensor(%row, %column) : b1[S, S]
  %rows = aten.expand(%row, size=[%b, %s]) : i64[B, S]
  %h = aten.unsqueeze(%seen, dim=1) : b1[B, 1, S]
  %mask = aten.unsqueeze(%h, dim=2) : b1[B, 1, 1, S]
  %out = aten.scaled_dot_product_attention(%q, %k, %v, %mask) : f32[B, 2, S, 4]
  return %out
}
"""
_PROGRAM = Program.parse(_TEXT)


class _Maker:
    """Adds random operators to a Program, before its attention."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.program = _PROGRAM.copy()
        self.rewriter = Rewriter(self.program, "test")
        self.graph = self.program.graphs["main"]
        nodes = {name_of(node): node for node in self.graph.nodes}
        self.attention, self.sizes = nodes["out"], [1, 5, nodes["b"], nodes["s"]]
        self.tensors = [node for node in calls(self.graph) if tensor_of(node) is not None and node is not nodes["out"]]

    def add(self) -> None:
        """Add one operator, if it takes what was drawn."""
        source = self._pick(self.tensors[-6:] if self.draw(st.booleans()) else self.tensors)
        shape, dtype = shape_of(source) or (), source.meta["val"].dtype
        rank = len(shape)
        dim = self.draw(st.integers(-rank, rank - 1)) if rank else 0
        number = self.draw(st.integers(-2, 3))
        kinds: dict[str, Any] = {
            "aten.unsqueeze": lambda: (source, self.draw(st.integers(0, rank))),
            "aten.slice.Tensor": lambda: (source, dim, self.draw(st.integers(-2, 2)), None, max(number, 1)),
            "aten.select.int": lambda: (source, dim, self.draw(st.integers(-1, 1))),
            "aten.permute": lambda: (source, self.draw(st.permutations(range(rank)))),
            "aten.expand": lambda: (source, self._expanded(shape)),
            "aten.cumsum": lambda: (source, dim),
            "aten.diff": lambda: (source, 1, dim, self._before(source, dim)),
            "aten.tril": lambda: (source, number),
            "aten.triu": lambda: (source, number),
            "aten.any.dim": lambda: (source, dim, self.draw(st.booleans())),
            "aten.all.dim": lambda: (source, dim, True),
            "aten.cat": lambda: ([source, self._pick(self.tensors)], dim),
            "aten.logical_not": lambda: (source,),
            "aten.where.self": lambda: (self._pick(self._of(torch.bool)), source, self._partner(source)),
            "aten.where.Scalar": lambda: (self._pick(self._of(torch.bool)), 0.0, float("-inf")),
            "aten.to.dtype": lambda: (source, self.draw(st.sampled_from([torch.int64, torch.bool, torch.float32]))),
            "aten.index.Tensor": lambda: (source, [self._pick(self._of(torch.int64)) for _ in range(rank)]),
            **dict.fromkeys(("aten.add.Scalar", "aten.sub.Scalar", "aten.mul.Scalar"), lambda: (source, number)),
            **{f"aten.{name}.Scalar": lambda: (source, number) for name in ("eq", "ne", "lt", "ge", "rsub")},
            **{f"aten.{name}.Tensor": lambda: (source, self._partner(source))
               for name in ("add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge", "__and__", "__or__")},
        }  # fmt: skip
        kind = self.draw(st.sampled_from(sorted(kinds)))
        if rank > 4 or (kind in ("aten.tril", "aten.triu") and rank < 2) or (rank == 0 and "slice" in kind):
            return
        if dtype == torch.bool and ("sub" in kind or "diff" in kind):
            return
        try:
            made = self.rewriter.insert(self.attention, kind, kinds[kind]())
        except (VerificationError, IndexError):
            return
        self.tensors.append(made)

    def values(self, batch: int, length: int) -> dict[fx.Node, Any]:
        """Return what the nodes really are at these sizes: those that depend on a failing one are left out."""
        found: dict[fx.Node, Any] = {}
        made = {"seen": torch.rand(batch, length, generator=torch.Generator().manual_seed(0)) < 0.5}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                found[node] = made.get(str(node.target), torch.zeros(batch, 2, length, 4))
            elif node.op == "call_function" and all(each in found for each in node.all_input_nodes):
                args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), found.__getitem__)
                try:
                    found[node] = node.target(*args, **kwargs)
                except (RuntimeError, IndexError):
                    continue
        return found

    def _pick(self, among: list[fx.Node]) -> fx.Node:
        return self.draw(st.sampled_from(among))  # type: ignore[no-any-return]

    def _of(self, dtype: torch.dtype) -> list[fx.Node]:
        return [node for node in self.tensors if node.meta["val"].dtype == dtype]

    def _partner(self, source: fx.Node) -> fx.Node:
        same = [node for node in self.tensors if _broadcasts(shape_of(node) or (), shape_of(source) or ())]
        return self._pick(same)

    def _expanded(self, shape: Any) -> list[Any]:
        front = self.draw(st.lists(st.sampled_from(self.sizes), max_size=1))
        return [*front, *(self._size() if size == 1 and isinstance(size, int) else -1 for size in shape)]

    def _size(self) -> Any:
        return self.draw(st.sampled_from(self.sizes))

    def _before(self, source: fx.Node, dim: int) -> fx.Node | None:
        if self.draw(st.booleans()):
            return None
        first = self.rewriter.insert(self.attention, "aten.slice.Tensor", (source, dim, 0, 1))
        return self.rewriter.insert(self.attention, "aten.sub.Tensor", (first, self.draw(st.integers(0, 2))))


def _broadcasts(first: Any, second: Any) -> bool:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return all(str(a) == str(b) or "1" in (str(a), str(b)) for a, b in pairs)


def _materialized(value: Value, shape: torch.Size) -> torch.Tensor:
    """Return the value at real sizes, by the meaning that its docstring gives it."""
    if isinstance(value, Grid):
        return value.tensor.expand(shape)
    form = value if isinstance(value, Linear) else value.form
    total = torch.full(shape, form.constant)
    for dim, (size, factor) in enumerate(zip(shape, form.factors, strict=True)):
        total = total + factor * torch.arange(size).reshape([-1 if each == dim else 1 for each in range(len(shape))])
    if isinstance(value, Linear):
        return total
    return torch.where(total == 0 if value.equal else total >= 0, value.yes, value.no).expand(shape)


@_SETTINGS
@given(st.data())
def test_index_values_are_what_operators_compute(data: st.DataObject) -> None:
    maker = _Maker(data.draw)
    for _ in range(12):
        maker.add()
    real = [maker.values(batch, length) for batch, length in _SIZES]
    for node in maker.tensors:
        value = value_of(node, maker.rewriter)
        for found in real:
            if value is not None and node in found:
                expected = found[node]
                torch.testing.assert_close(
                    _materialized(value, expected.shape), expected, rtol=0, atol=0, equal_nan=True
                )


@_SETTINGS
@given(st.data())
def test_attention_with_a_random_mask_stays_the_same(data: st.DataObject) -> None:
    maker = _Maker(data.draw)
    for _ in range(8):
        maker.add()
    sizes = shape_of(maker.attention) or ()
    sizes = (*sizes[:3], sizes[2])
    masks = [
        node
        for node in maker.tensors
        if node.meta["val"].dtype in (torch.bool, torch.float32)
        and 2 <= len(shape_of(node) or ()) <= 4
        and all(str(a) in (str(b), "1") for a, b in zip(reversed(shape_of(node) or ()), reversed(sizes), strict=False))
    ]
    mask = data.draw(st.sampled_from(masks[-5:]))
    maker.rewriter.set_arguments(maker.attention, (*maker.attention.args[:3], mask))
    maker.graph.eliminate_dead_code()
    _compare(maker.program)


def _compare(program: Program) -> None:
    runs = [(inputs, result) for inputs in map(_inputs, _SIZES) if (result := _result(program, inputs)) is not None]
    assume(runs and _result(program, program.samples) is not None)
    fused, _ = run_pipeline(Pipeline.parse("fuse,dce"), program, Context(), verify=2)
    for inputs, expected in runs:
        torch.testing.assert_close(fused(**inputs), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def _inputs(sizes: tuple[int, int]) -> dict[str, torch.Tensor]:
    batch, length = sizes
    generator = torch.Generator().manual_seed(length)
    inputs = {name: torch.randn(batch, 2, length, 4, generator=generator) for name in "qkv"}
    return inputs | {"seen": torch.rand(batch, length, generator=generator) < 0.5}


def _result(program: Program, inputs: dict[str, Any]) -> Any:
    """Return what a Program computes; None where the operators drawn do not take these sizes."""
    try:
        return program(**inputs)
    except (RuntimeError, IndexError):
        return None


def _text(lines: str, mask: str, sizes: str = "B, 2, S, 4", also: str = "") -> str:
    return f"""# burnish 1
# facts: canonical
graph main({also}%q: f32[{sizes}], %k: f32[{sizes}], %v: f32[{sizes}]) {{
  %b = aten.sym_size.int(%q, dim=0) : sym(B)
{lines}
  %out = aten.scaled_dot_product_attention(%q, %k, %v, {mask}) : f32[{sizes}]
  return %out
}}
"""


@pytest.mark.parametrize("name", ["le", "lt", "ge", "gt", "eq", "ne"])
@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("swapped", [False, True])
def test_only_the_diagonal_itself_is_causal(name: str, offset: int, swapped: bool) -> None:
    first, second = ("%u", "%o") if swapped else ("%o", "%u")
    text = _text(
        f"""  %p = aten.arange(end=6) : i64[6]
  %u = aten.unsqueeze(%p, dim=1) : i64[6, 1]
  %o = aten.add.Scalar(%p, other={offset}) : i64[6]
  %m = aten.{name}.Tensor({first}, {second}) : b1[6, 6]""",
        "%m",
        "B, 2, 6, 4",
    )
    fused = fuse(text)
    positions = torch.arange(6)
    pair = (positions[:, None], positions + offset) if swapped else (positions + offset, positions[:, None])
    causal = torch.equal(getattr(torch, name)(*pair), torch.ones(6, 6, dtype=torch.bool).tril())
    assert ("is_causal=True" in fused.print()) == causal
    assert operators(fused) == ["aten.scaled_dot_product_attention"]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_a_constant_triangle_cut_to_a_dynamic_length_is_causal(dtype: str) -> None:
    text = f"""# burnish 1
# facts: canonical
graph main(%q: {dtype}[B, 2, S, 4], %k: {dtype}[B, 2, S, 4], %v: {dtype}[B, 2, S, 4]) {{
  %s = aten.sym_size.int(%q, dim=2) : sym(S)
  %m = aten.slice.Tensor(@bias, dim=2, start=0, end=%s) : b1[1, 1, Min(64, S), 64]
  %n = aten.slice.Tensor(%m, dim=3, start=0, end=%s) : b1[1, 1, Min(64, S), Min(64, S)]
  %o = aten.expand(%n, size=[1, 1, %s, %s]) : b1[1, 1, S, S]
  %out = aten.scaled_dot_product_attention(%q, %k, %v, %o) : {dtype}[B, 2, S, 4]
  return %out
}}
"""
    text = text.replace("graph main", "constant @bias: b1[1, 1, 64, 64]\ngraph main")
    program = Program.parse(text, {"bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()})
    rewriter = Rewriter(program, "test")
    triangle = next(node for node in calls(program.graphs["main"]) if name_of(node) == "n")
    value = value_of(triangle, rewriter)
    assert isinstance(value, Choice)
    assert value.form == Linear(0, (0, 0, 1, -1))


@pytest.mark.parametrize(
    ("operators_", "expected"),
    [
        # Bounds of fixed sizes: 4 is the last of five.
        ([("aten.lt.Scalar", "few", 5)], True),
        ([("aten.lt.Scalar", "few", 4)], Linear(-4, (1,))),
        ([("aten.ge.Scalar", "keys", 0)], True),
        ([("aten.lt.Scalar", "keys", 100)], Linear(-100, (1,))),
        ([("aten.rsub.Scalar", "keys", 3, 2)], Linear(3, (-2,))),
        ([("aten.slice.Tensor", "keys", 0, 1, None, 3)], Linear(1, (3,))),
        ([("aten.slice.Tensor", "few", 0, -3, None, 2)], Linear(2, (2,))),
        ([("aten.slice.Tensor", "keys", 0, -3)], None),
        ([("aten.select.int", "few", 0, -1)], 4),
        ([("aten.select.int", "keys", 0, -1)], None),
        # An index below 0 counts from the end.
        ([("aten.sub.Scalar", "few", 2), ("aten.index.Tensor", "odd", ["0"])], Grid),
        ([("aten.sub.Scalar", "few", 2), ("aten.index.Tensor", "keys", ["0"])], None),
        ([("aten.expand", "row", [5, -1]), ("aten.index.Tensor", "0", ["few", "few"])], Linear(0, (1,))),
        ([("aten.cumsum", "true", 1)], Linear(1, (0, 1))),
        ([("aten.diff", "rows", 1, 0)], 0),
        ([("aten.diff", "rows", 1, 1)], 1),
        # Two choices are no choice; one with its opposite is not looked at.
        ([("aten.eq.Tensor", "row", "column"), ("aten.__and__.Tensor", "causal", "0")], None),
        ([("aten.__or__.Tensor", "causal", "later")], True),
        ([("aten.mul.Tensor", "keys", "keys")], None),
        ([("aten.__and__.Tensor", "mask", "causal")], None),
    ],
)
def test_the_value_of(operators_: list[tuple[Any, ...]], expected: Any) -> None:
    maker = _Maker(None)
    nodes = {name_of(node): node for node in maker.graph.nodes}
    for number, (operator, *arguments) in enumerate(operators_):
        args = [[nodes[each] for each in one] if operator == "aten.index.Tensor" and isinstance(one, list)
                else nodes[one] if isinstance(one, str) else one for one in arguments]  # fmt: skip
        nodes[str(number)] = node = maker.rewriter.insert(maker.attention, operator, tuple(args))
    value = value_of(node, maker.rewriter)
    if expected is None:
        assert value is None
    elif isinstance(expected, int):
        assert isinstance(value, Grid)
        assert value.uniform
        assert value.tensor.item() == expected
    elif expected is Grid:
        assert isinstance(value, Grid)
    else:
        assert (value.form if isinstance(value, Choice) else value) == expected
    for sizes in _SIZES:
        found = maker.values(*sizes)
        if value is not None and node in found:
            torch.testing.assert_close(_materialized(value, found[node].shape), found[node])


def test_a_symbol_that_may_be_1_is_not_aligned_with_another() -> None:
    keys = next(node for node in calls(_PROGRAM.graphs["main"]) if name_of(node) == "keys")
    true = next(node for node in calls(_PROGRAM.graphs["main"]) if name_of(node) == "true")
    batch, length = shape_of(true) or ()
    assert aligned(Linear(0, (1,)), shape_of(keys) or (), (batch, length))
    assert not aligned(Linear(0, (1,)), shape_of(keys) or (), (length, batch))
    assert aligned(Grid(torch.zeros(1)), shape_of(keys) or (), (length, batch))


def test_rows_in_another_order_are_not_taken_as_they_are() -> None:
    text = _text(
        """  %p = aten.arange(end=5) : i64[5]
  %n = aten.arange(end=%b) : i64[B]
  %u = aten.reshape(%p, shape=[5, 1]) : i64[5, 1]
  %i = aten.index.Tensor(%m, [%p, %u]) : b1[5, 5]""",
        "%i",
        "B, 2, 5, 4",
        "%m: b1[5, 5], ",
    )
    assert "aten.index.Tensor" in operators(fuse(text, batches=(5,)))


def test_grids_have_one_form() -> None:
    full = torch.zeros(2, 3, 4)
    uniform = settled(Grid(full), full.shape)
    assert isinstance(uniform, Grid)
    assert uniform.uniform
    assert settled(Grid(torch.arange(12).reshape(3, 4)), (3, 4)) == Linear(0, (4, 1))
    # 0.0 and -0.0 are equal, and not the same.
    signed = settled(Grid(torch.tensor([[0.0, -0.0], [0.0, 0.0]])), (2, 2))
    assert not (isinstance(signed, Grid) and signed.uniform)
    assert settled(Grid(torch.zeros(3)), (4,)) is None


def test_a_number_beyond_int64_is_no_linear_form() -> None:
    assert settled(Linear(0, (1 << 30,)), (5,)) is None
    assert settled(Linear(1 << 50, (1,)), (5,)) is None


def test_a_long_chain_is_evaluated_once() -> None:
    program = Program.parse(
        "# burnish 1\ngraph main(%x: f32[S]) {\n  %p = aten.arange(end=4) : i64[4]\n  return %p\n}\n"
    )
    rewriter = Rewriter(program, "test")
    graph = program.graphs["main"]
    node = next(calls(graph))
    chain = [node]
    for _ in range(2000):
        with graph.inserting_after(node):
            made = graph.call_function(find_operator("aten.add.Tensor"), (node, node))
        made.meta["val"] = node.meta["val"]
        chain.append(node := made)
    # Doubling 2000 times leaves the numbers that a linear form may have.
    assert value_of(chain[-1], rewriter) is None
    assert value_of(chain[10], rewriter) == Linear(0, (1024,))
