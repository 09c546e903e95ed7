"""precision: what golden cases cannot show: numbers, branches, stages, limits, errors, backends, and fewest casts."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.errors import BackendError, PassError
from burnish.compiler.graphs import calls, output_of, placeholders
from burnish.compiler.loading import parse_backend
from burnish.compiler.numerics import worst_drift
from burnish.compiler.operators import operator_name
from burnish.compiler.pipeline import run_pipeline
from burnish.passes.precision import Precision
from burnish.passes.precision.placement import Edge, cheapest, count_casts
from tests.random_programs import programs

_SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
_CAST = torch.ops.aten.to.dtype


def run(program: Program, passes: str, context: Context | None = None) -> tuple[Program, list[str]]:
    context = context if context is not None else Context(progress=False)
    return run_pipeline(Pipeline.parse(f"canonicalize,{passes}"), program, context, verify=4)[0], context.notes


def parsed(body: str, *constants: str, head: str = "%x: f32[B, 4]") -> Program:
    known = "".join(f"constant @{each}\n" for each in constants)
    return Program.parse(f"# burnish 1\n{known}graph main({head}) {{\n{body}\n}}\n")


def casts(program: Program) -> int:
    return sum(node.target is _CAST for _, graph in program.all_graphs() for node in calls(graph))


def dtype(program: Program, name: str) -> torch.dtype:
    for _, graph in program.all_graphs():
        for node in graph.nodes:
            if node.meta.get("name") == name:
                return node.meta["val"].dtype
    raise KeyError(name)


# -- the fewest casts ---------------------------------------------------------------------------------------------


@st.composite
def _placements(draw: Any) -> tuple[list[bool | None], list[Edge]]:
    count = draw(st.integers(2, 8))
    pins = draw(st.lists(st.sampled_from([None, None, None, True, False]), min_size=count, max_size=count))
    units = st.lists(st.integers(0, count - 1), min_size=2, max_size=4, unique=True).map(tuple)
    return pins, draw(st.lists(st.builds(Edge, units, st.integers(1, 5)), max_size=9))


@given(_placements())
@settings(max_examples=300, deadline=None)
def test_a_placement_has_the_fewest_casts_and_of_these_the_fewest_bytes(found: Any) -> None:
    pins, edges = found

    def cost(low: Any) -> tuple[int, int]:
        return count_casts(low, edges), sum(edge.size for edge in edges if len({low[unit] for unit in edge.units}) == 2)

    ways = itertools.product(*([False, True] if pin is None else [pin] for pin in pins))
    chosen = cheapest(pins, edges)
    assert all(pin is None or pin == low for pin, low in zip(pins, chosen, strict=True))
    assert cost(chosen) == min(map(cost, ways))


_LOW = ("aten.conv2d", "aten.linear", "aten.addmm")
_ISLANDS = ("aten.batch_norm", "aten.mean.dim")


def _fewest(program: Program, most_free: int) -> int:
    """Try every type of every operator; a value has a cast where a reader's type is not its own."""
    graph = program.graphs["main"]
    nodes, end = list(calls(graph)), output_of(graph)
    fixed = {node: True for node in nodes if operator_name(node.target) in _LOW}
    fixed |= {node: False for node in nodes if operator_name(node.target) in _ISLANDS}
    fixed |= dict.fromkeys((*placeholders(graph), end), False)
    free = [node for node in nodes if node not in fixed]
    assume(len(free) <= most_free)
    found = []
    for ways in itertools.product((False, True), repeat=len(free)):
        low = fixed | dict(zip(free, ways, strict=True))
        found.append(
            sum(len({*([low[v]] if v in low else []), *(low[user] for user in v.users)}) > 1 for v in graph.nodes)
        )
    return min(found)


@given(text=programs(), which=st.sampled_from(["fp16", "bf16"]))
@_SETTINGS
def test_programs_get_the_fewest_casts(text: str, which: str) -> None:
    program = Pipeline.parse("canonicalize,dce").run(Program.parse(text))
    assume(any(operator_name(node.target) in _LOW for node in calls(program.graphs["main"])))
    fewest = _fewest(program, 10)
    # Without data: what half precision cannot hold would be islands of its own.
    program.samples.clear()
    context = Context(progress=False)
    found = Precision(dtype=which)
    rewritten = run_pipeline(Pipeline([found]), program, context, verify=3)[0]
    assert casts(rewritten) <= 1.1 * fewest


# -- numbers ------------------------------------------------------------------------------------------------------


def test_every_result_is_within_rounding() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x = torch.randn(2, 3, 8, 8)
    program = burnish.capture(net, (x,))
    for which, allowed in (("fp16", 2e-3), ("bf16", 2e-2)):
        found, notes = run(program, f"precision{{dtype={which}}}")
        assert 0 < worst_drift([found(x)], [net(x)]) <= allowed
        assert f"2 operators in {which}" not in notes[-1] and f"operators in {which}" in notes[-1]
        assert "1 aten.batch_norm (norms stay in float32)" in notes[-1]


def test_weights_of_two_names_stay_one_tensor_and_take_half_the_bytes() -> None:
    program = parsed("%a = aten.linear(%x, @w)\n%b = aten.linear(%a, @v)\nreturn %b", "w: f32[4, 4]", "v: f32[4, 4]")
    program.constants["v"] = program.constants["w"]
    found, _ = run(program, "precision")
    assert found.constants["v"].data_ptr() == found.constants["w"].data_ptr()
    assert found.constants["w"].dtype is torch.float16
    assert program.constants["w"].dtype is torch.float32


def test_a_large_constant_mask_is_cut_off_for_attention() -> None:
    attention = "%y = aten.scaled_dot_product_attention(%x, %x, %x, @m)\nreturn %y"
    program = parsed(attention, "m: f32[3, 3]", head="%x: f32[B, 1, 3, 4]")
    lowest = torch.finfo(torch.float32).min
    program.constants["m"] = torch.triu(torch.full((3, 3), lowest), 1)
    for which in ("fp16", "bf16"):
        found, _ = run(program, f"precision{{dtype={which}}}")
        stored = found.constants["m"]
        assert stored.dtype is not torch.float32 and bool(stored.isfinite().all())
        x = program.samples["x"]
        assert worst_drift([found(x)], [program(x)]) < 2e-2


def test_infinities_are_kept_and_are_no_range() -> None:
    body = "%m = aten.masked_fill.Scalar(%x, %k, value=-inf)\n%y = aten.linear(%x, @w)\nreturn %m, %y"
    program = parsed(body, "w: f32[4, 4]", head="%x: f32[B, 4], %k: b1[B, 4]")
    found, notes = run(program, "precision{io=convert}")
    assert dtype(found, "m") is torch.float16
    assert "cannot hold" not in notes[-1]


def test_a_measured_range_makes_an_island() -> None:
    program = parsed("%a = aten.linear(%x, @w)\n%b = aten.linear(%a, @w)\nreturn %b", "w: f32[4, 4]")
    program.constants["w"] = torch.eye(4)
    program.samples["x"] = torch.full((2, 4), 5e4)
    for options, expected in (
        ("", torch.float32),
        ("{max_range=6e4}", torch.float16),
        ("{dtype=bf16}", torch.bfloat16),
    ):
        assert dtype(run(program, f"precision{options}")[0], "a") is expected


def test_small_numbers_are_an_island_and_a_small_bias_is_not() -> None:
    program = parsed("%a = aten.linear(%x, @w)\n%y = aten.linear(%x, @v, @b)\nreturn %a, %y", *(
        "w: f32[4, 4]", "v: f32[4, 4]", "b: f32[4]",
    ))  # fmt: skip
    program.constants["w"] *= 1e-7
    program.constants["b"] *= 1e-7
    found, _ = run(program, "precision")
    assert (dtype(found, "a"), dtype(found, "y")) == (torch.float32, torch.float16)


def test_masks_that_hide_nothing_in_the_samples_do_not_overflow() -> None:
    body = "%n = aten.rsub.Scalar(%m, other=1.0)\n%k = aten.mul.Tensor(%n, other=-3.4028234663852886e+38)\n" \
        "%e = aten.expand(%k, [-1, 4])\n%a = aten.linear(%x, @w)\n%s = aten.add.Tensor(%a, %e)\n" \
        "%p = aten.softmax.int(%s, -1)\n%y = aten.linear(%p, @w)\nreturn %y"  # fmt: skip
    program = parsed(body, "w: f32[4, 4]", head="%x: f32[B, 4], %m: f32[B, 4]")
    program.samples["m"] = torch.ones_like(program.samples["m"])
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    x = program.samples["x"][:1].expand(2, 4)
    for which in ("fp16", "bf16"):
        found, _ = run(program, f"precision{{dtype={which}}}")
        assert dtype(found, "s") is torch.float32
        assert worst_drift([found(x, mask)], [program(x, mask)]) < 2e-2


# -- graphs -------------------------------------------------------------------------------------------------------


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        y = self.first(x)

        def inner(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            (found,) = torch.cond(p.sum() > 1, lambda u: (u * 2,), lambda u: (self.last(u),), (z,))
            return self.last(found), z + 1

        a, b = torch.cond(p.sum() > 0, inner, lambda z: (torch.softmax(z, -1), z.clone()), (y,))
        return self.last(a) + b


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
def test_branches(backend: str) -> None:
    torch.manual_seed(0)
    model = _Branches().eval()
    program = burnish.capture(model, (torch.randn(3, 4), torch.ones(1)))
    found, _ = run(program, "precision")
    assert {node.meta["val"].dtype for _, graph in found.branches.items() for node in placeholders(graph)} >= {
        torch.float16
    }
    compiled = burnish.compile(found, "", backend=backend, progress=False)
    x = torch.randn(3, 4)
    for p in (-1.0, 0.5, 2.0):
        expected = model(x, torch.tensor([p]))
        assert worst_drift([found(x, torch.tensor([p]))], [expected]) < 2e-3
        assert worst_drift([compiled(x, torch.tensor([p]))], [expected]) < 2e-3


def test_stages_hand_over_half_precision() -> None:
    text = """# burnish 1
constant @w: f32[4, 4]
graph first(%x: f32[B, 4]) {
  %a = aten.linear(%x, @w)
  return h=%a
}
graph second(%h: f32[B, 4]) {
  %b = aten.linear(%h, @w)
  return y=%b
}
"""
    found, _ = run(Program.parse(text), "precision")
    assert dtype(found, "h") is torch.float16
    assert casts(found) == 2
    assert found(found.samples["x"]).dtype is torch.float32


def test_buffers_that_a_run_updates_keep_their_type() -> None:
    body = "%a = aten.linear(%x, @w)\n%n = aten.add.Tensor(@state, %a)\n%u = aten.copy_(@state, %n)\nreturn %n"
    found, _ = run(parsed(body, "w: f32[4, 4]", "state: f32[2, 4]", head="%x: f32[2, 4]"), "precision")
    assert found.constants["state"].dtype is torch.float32
    assert found.constants["w"].dtype is torch.float16


def test_several_results() -> None:
    body = "%a = aten.linear(%x, @w)\n%t = aten.topk(%a, k=2)\n%v = getitem(%t, 0)\n%i = getitem(%t, 1)\n" \
        "%s = aten.split.Tensor(%a, split_size=2, dim=-1)\n%l = getitem(%s, 0)\n%r = getitem(%s, 1)\n" \
        "%c = aten.cat([%l, %r], dim=0)\nreturn %v, %i, %c"  # fmt: skip
    found, _ = run(parsed(body, "w: f32[4, 4]"), "precision")
    assert (dtype(found, "v"), dtype(found, "i"), dtype(found, "c")) == (torch.float32, torch.int64, torch.float32)
    # One before both, rather than one behind each.
    assert casts(found) == 2


def test_sizes_that_depend_on_values_stay() -> None:
    body = "%a = aten.linear(%x, @w)\n%n = aten.nonzero(%a)\n%s = aten.select.int(%n, dim=1, index=0)\n" \
        "%r = aten.index_select(%a, dim=0, index=%s)\n%y = aten.linear(%r, @w)\nreturn %y"  # fmt: skip
    found, _ = run(parsed(body, "w: f32[4, 4]"), "precision")
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert found(x).shape == (4, 4)


def test_twice_changes_nothing_the_second_time() -> None:
    body = "%a = aten.linear(%x, @w)\n%s = aten.softmax.int(%a, -1)\n%b = aten.linear(%s, @w)\nreturn %b, %s"
    program = parsed(body, "w: f32[4, 4]")
    once, _ = run(program, "precision")
    twice, notes = run(once, "precision")
    assert casts(twice) == casts(once)
    assert any("found nothing" in note for note in notes)


@pytest.mark.parametrize(
    "passes",
    [
        "fold-batch-norm,precision{dtype=bf16},fold-constants,cse,dce,fuse,dce",
        "fold-batch-norm,fuse,precision,canonicalize,cse,dce",
        "fold-batch-norm,fuse,quantize,precision",
        "fold-batch-norm,precision,quantize",
        "quantize-dynamic,precision",
        "prune{ratio=0.3},fuse,precision",
        "precision,prune{ratio=0.3}",
        "insert-exits{exits=1},precision",
        "insert-exits{exits=1,mode=whole-batch},precision",
        "precision{dtype=bf16},insert-exits{exits=1}",
        "sparsify{ratio=0.5},precision",
    ],
)
def test_any_order(passes: str) -> None:
    torch.manual_seed(0)
    blocks = [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    layers = (
        nn.Conv2d(3, 16, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip
    net = nn.Sequential(OrderedDict((f"layer{index}", each) for index, each in enumerate(layers))).eval()
    x = torch.randn(4, 3, 10, 10)
    program = burnish.capture(net, (x,))
    found, _ = run(program, passes, Context(calibration=[(x,)], progress=False))
    compiled = burnish.compile(found, "", backend="torchscript", progress=False, verify=0)
    expected, actual = (torch.utils._pytree.tree_leaves(each(x)) for each in (found, compiled))
    assert worst_drift(actual, expected) < 5e-2


# -- options ------------------------------------------------------------------------------------------------------


def test_max_drift_puts_layers_back() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(each for _ in range(6) for each in (nn.Linear(32, 32), nn.GELU()))).eval()
    data = [torch.randn(8, 32) for _ in range(3)]
    program = burnish.capture(net, (data[0],))
    free, _ = run(program, "precision{dtype=bf16}")
    limit = worst_drift([free(data[0])], [net(data[0])]) / 2
    context = Context(calibration=data, progress=False)
    found, notes = run(program, f"precision{{dtype=bf16,max_drift={limit}}}", context)
    assert all(worst_drift([found(x)], [net(x)]) <= limit for x in data)
    assert sum(value.dtype is torch.bfloat16 for value in found.used_constants().values()) > 0
    assert "of 6 layers are back in float32" in notes[0]
    strictest, _ = run(program, "precision{dtype=bf16,max_drift=1e-30}")
    assert casts(strictest) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{dtype=fp8}", "option 'dtype' must be 'fp16' or 'bf16', but is 'fp8'"),
        ("{max_drift=0}", "option 'max_drift' must be a number above 0, but is 0.0"),
        ("{max_drift=-1e-3}", "option 'max_drift' must be a number above 0"),
        ("{max_range=0}", "option 'max_range' must be a number above 0"),
        ("{samples=0}", "option 'samples' must be 1 or more"),
        ("{dtype=bf16,io=convert,max_drift=1e-9}", "cannot be met: with all layers in float32 the drift is"),
        ("{io=other}", "option 'io' must be 'keep' or 'convert'"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    program = parsed("%a = aten.linear(%x, @w)\nreturn %a", "w: f32[4, 4]")
    with pytest.raises(burnish.BurnishError, match=message):
        run(program, f"precision{options}")


def test_a_limit_needs_data_and_floats() -> None:
    program = parsed("%a = aten.linear(%x, @w)\n%k = aten.argmax(%a, dim=-1)\nreturn %k", "w: f32[4, 4]")
    with pytest.raises(PassError, match="needs an output of floating point"):
        run(program, "precision{max_drift=1e-2}")
    program.samples.clear()
    with pytest.raises(PassError, match="option 'max_drift' needs data to measure on: give calibration="):
        run_pipeline(Pipeline.parse("canonicalize,precision{max_drift=1e-2}"), program, Context())


def test_nothing_to_do_is_said() -> None:
    for body, head, said in (
        ("%a = aten.add.Tensor(%x, other=1)\nreturn %a", "%x: i64[B]", "the program has no float32"),
        ("%a = aten.mul.Tensor(%x, %x)\nreturn %a", "%x: f16[B]", "the program has no float32"),
        ("%a = aten.relu(%x)\nreturn %a", "%x: f32[B]", "it has no layer in float32"),
    ):
        found, notes = run(parsed(body, head=head), "precision")
        assert said in notes[0]
        assert casts(found) == 0


# -- backends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["fp16", "bf16"])
@pytest.mark.parametrize("io", ["keep", "convert"])
@pytest.mark.parametrize("backend", ["onnx", "onnx{dialect=standard}", "onnx{runtime=openvino}", "torchscript"])
def test_backends(backend: str, io: str, which: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(288, 10), nn.Softmax(-1)).eval()
    x = torch.randn(2, 3, 8, 8)
    options = f"{{dtype={which},io={io}}}"
    if which == "bf16" and backend in ("onnx", "onnx{dialect=standard}"):
        with pytest.raises(burnish.BurnishError, match=r"onnx has no kernels for bf16|few kernels for bfloat16"):
            burnish.compile(net, f"default,precision{options}", (x,), backend=backend, progress=False)
        return
    compiled = burnish.compile(net, f"default,precision{options}", (x,), backend=backend, progress=False)
    result = compiled(x.to(compiled.program.samples["input"].dtype))
    expected = {"keep": torch.float32, "convert": torch.float16 if which == "fp16" else torch.bfloat16}[io]
    assert result.dtype is expected
    assert worst_drift([result.float()], [net(x)]) < 3e-2
    assert compiled.report.artifact_drift is not None and compiled.report.artifact_drift < 3e-2


def test_a_file_in_bfloat16_needs_no_runtime_here() -> None:
    net = nn.Linear(4, 4).eval()
    chosen, options = parse_backend("onnx{dialect=tensorrt}")
    assert torch.bfloat16 in chosen.target(options).dtypes
    compiled = burnish.compile(
        net, "default,precision{dtype=bf16}", (torch.randn(2, 4),), backend="onnx{dialect=tensorrt}", verify=0,
        progress=False,
    )  # fmt: skip
    assert "opset 22, dialect tensorrt" in compiled.report.notes
    with pytest.raises(BackendError, match=r"few kernels for bfloat16 .*burnish\.load\(path, runtime=\"openvino\"\)"):
        compiled(torch.randn(2, 4))
