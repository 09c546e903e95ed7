"""prune-blocks: what is a block, which ones go, and what is left is the network built without them."""

from __future__ import annotations

import copy
import gc
import time
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import fx, nn

import burnish
from benchmarks.models import decoders, encoders, images, vision
from burnish import Context, InputError, OptionError, Pipeline, Program, Rewriter
from burnish.compiler.graphs import name_of
from burnish.compiler.numerics import worst_drift
from burnish.compiler.operators import operator_name
from burnish.compiler.pipeline import PassRecord, run_pipeline
from burnish.passes.canonical.types import same_type
from burnish.passes.pruning import PruneBlocks
from burnish.passes.pruning.blocks import blocks_of
from tests.random_programs import programs

_ZOO = {entry.name: entry for module in (images, vision, encoders, decoders) for entry in module.entries()}
_ADD = torch.ops.aten.add.Tensor


class _Convolutions(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


class _ResNet(nn.Module):
    """Residual blocks, and one whose shortcut computes."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.blocks = nn.ModuleList([_Convolutions() for _ in range(count)])
        self.short, self.long = nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 1:
                x = torch.relu(self.short(x) + self.long(x))
        return self.head(x.mean((2, 3)))


class _Layer(nn.Module):
    """A pre-norm transformer layer: two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def attend(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        return self.out(attended.transpose(1, 2).reshape(batch, tokens, 16))

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm2(x))))


class _Transformer(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 16)
        self.layers = nn.ModuleList([_Layer() for _ in range(count)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 20)
        self.without: set[tuple[int, str]] = set()

    def forward(self, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        x, mask = self.table(ids), seen[:, None, None, :]
        for index, layer in enumerate(self.layers):
            x = x if (index, "attend") in self.without else x + layer.attend(x, mask)
            x = x if (index, "feed") in self.without else x + layer.feed(x)
        return self.head(self.norm(x))


def _tokens(batch: int) -> tuple[torch.Tensor, ...]:
    return torch.randint(0, 20, (batch, 7)), torch.rand(batch, 7) > 0.2


def _prune(
    program: Program, options: str = "", calibration: Any = None, verify: int = 4
) -> tuple[Program, PassRecord, Context]:
    context = Context(calibration=calibration)
    passes = Pipeline.parse(f"canonicalize,prune-blocks{{{options}}}")
    after, records = run_pipeline(passes, program, context, verify=verify)
    return after, records[-1], context


def _named(context: Context) -> set[str]:
    """Return the sums that the note names."""
    names = context.notes[0].partition("importance: ")[2].split(" (")[0].split(", ")
    assert len(set(names)) == len(names)
    return {each.split()[0] for each in names}


def _scale(layer: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for each in layer.parameters():
            each *= factor


def test_the_block_that_does_least_goes() -> None:
    model = _ResNet().eval()
    _scale(model.blocks[2].second, 1e-3)
    x = torch.randn(2, 3, 12, 12)
    program = burnish.capture(model, (x,))
    after, record, context = _prune(program)
    assert context.notes[0].startswith("prune-blocks removed 1 of 4 residual blocks, by importance: blocks.2.add ")
    assert record.skips == []
    assert not [name for name in after.used_constants() if name.startswith("blocks.2.")]
    smaller = copy.deepcopy(model)
    # Its relu stays, on what relu gave.
    smaller.blocks[2] = nn.ReLU()
    x = torch.randn(5, 3, 12, 12)
    assert torch.equal(after(x), smaller(x))
    # The parameters of one block are gone, and nothing else that was read.
    parameters = {name: each.numel() for name, each in model.named_parameters()}
    assert set(parameters) & set(after.used_constants()) == {name for name in parameters if "blocks.2." not in name}


@pytest.mark.parametrize("weak", [{(0, "attend")}, {(1, "feed")}, {(0, "feed"), (1, "attend"), (1, "feed")}])
def test_blocks_of_a_transformer(weak: set[tuple[int, str]]) -> None:
    model = _Transformer().eval()
    for index, name in weak:
        _scale(model.layers[index].out if name == "attend" else model.layers[index].down, 1e-3)
    program = burnish.capture(model, _tokens(2))
    after, record, _ = _prune(program, f"ratio={len(weak) / 6}")
    assert record.rules["prune-blocks"] == len(weak)
    model.without = weak
    inputs = _tokens(5)
    assert torch.equal(after(*inputs), model(*inputs))


def test_importance_is_the_angle_that_a_block_turns_its_input_by() -> None:
    model = _Transformer(2).eval()
    data = [_tokens(3), _tokens(2)]
    _, _, context = _prune(burnish.capture(model, data[0]), "ratio=0.99", data)
    cosines: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for ids, seen in data:
            x = model.table(ids)
            for index, layer in enumerate(model.layers):
                for name, f in (("attend", layer.attend(x, seen[:, None, None, :])), ("feed", None)):
                    y = x + (layer.feed(x) if f is None else f)
                    cosine = nn.functional.cosine_similarity(x.flatten(1), y.flatten(1))
                    cosines.setdefault(f"{index} {name}", []).append(cosine)
                    x = y
    expected = sorted(1 - float(torch.cat(each).mean()) for each in cosines.values())[:3]
    found = [float(each.split()[1]) for each in context.notes[0].partition("importance: ")[2].split(", ")]
    assert found == [float(f"{each:.2g}") for each in expected]


def test_calibration_data_decide() -> None:
    text = """# burnish 1
# facts: canonical
constant @a: f32[4, 4]
constant @b: f32[4, 4]
graph main(%x: f32[B, 4]) {
  %positive = aten.relu(%x)
  %fa = aten.linear(%positive, @a)
  %first = aten.add.Tensor(%x, %fa)
  %turned = aten.neg(%first)
  %negative = aten.relu(%turned)
  %fb = aten.linear(%negative, @b)
  %second = aten.add.Tensor(%first, %fb)
  return %second
}
"""
    square = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    program = Program.parse(text, {"a": square, "b": square})
    x = torch.rand(3, 4) + 0.1
    for data, removed in ((x, "second"), (-x, "first")):
        after, _, context = _prune(program, "ratio=0.5", [data])
        assert context.notes == [f"prune-blocks removed 1 of 2 residual blocks, by importance: {removed} 0"]
        assert torch.equal(after(data), program(data))
    # One item of 100 is enough, and more are not asked for.
    asked = []

    def endless() -> Any:
        while True:
            asked.append(1)
            yield torch.rand(100, 4)

    _prune(program, "ratio=0.5", endless())
    assert len(asked) == 1
    _, _, context = _prune(program, "ratio=0.5")
    assert context.notes[0].endswith("(on the example inputs: give calibration=)")


def _brute_force(program: Program) -> set[str]:
    """Return the sums of blocks by their definition."""
    found = set()
    for graph in program.graphs.values():
        below: dict[fx.Node, set[fx.Node]] = {}
        for node in reversed(graph.nodes):
            below[node] = {each for user in node.users for each in (user, *below[user])}
        assert all(node.op != "call_function" or graph.output_node() in below[node] for node in graph.nodes)
        for node in graph.find_nodes(op="call_function", target=_ADD):
            x, f = node.args[:2]
            if not isinstance(x, fx.Node) or not isinstance(f, fx.Node) or not same_type(x, f):
                continue
            x, f = (x, f) if f in below[x] else (f, x)
            inside = {each for each in below[x] if f in below[each]} | {f}
            ends = f in below[x] and node.kwargs.get("alpha", 1) == 1 and any(map(_multiplies, inside))
            if ends and all(user in inside or user is node for each in inside for user in each.users):
                found.add(name_of(node))
    return found


def _multiplies(node: fx.Node) -> bool:
    return operator_name(node.target) in {"aten.linear", "aten.addmm", "aten.conv2d"}


def _without(program: Program, removed: set[str]) -> Program:
    """Return the Program with 0 f(x) in the place of f(x) in these blocks."""
    oracle = program.copy()
    sources = {name_of(block.sum): name_of(block.source) for block in blocks_of(oracle, Rewriter(oracle, "oracle"))}
    rewriter = Rewriter(oracle, "oracle")
    for node in rewriter.nodes("aten.add.Tensor"):
        if name_of(node) in removed:
            args: Any = [
                each if name_of(each) == sources[name_of(node)] else rewriter.insert(node, "aten.mul.Tensor", (each, 0))
                for each in node.args[:2]
            ]
            rewriter.set_arguments(node, tuple(args))
    return oracle


@st.composite
def residual_texts(draw: Any) -> str:
    """Draw rows of layers, with blocks in blocks, blocks that share their input, and values that are read twice."""
    lines: list[str] = []

    def add(call: str) -> str:
        lines.append(f"  %v{len(lines)} = {call}")
        return f"%v{len(lines) - 1}"

    def some(x: str, depth: int) -> str:
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(["linear", "tanh", "block", "block", "shared", "earlier", "gate"]))
            if kind == "linear":
                x = add(f"aten.linear({x}, @w)")
            elif kind == "tanh" or depth == 0:
                x = add(f"aten.tanh({x})")
            elif kind == "block":
                sides = [x, some(x, depth - 1)]
                x = add(f"aten.add.Tensor({', '.join(draw(st.permutations(sides)))})")
            elif kind == "shared":
                a, b = some(x, depth - 1), some(x, depth - 1)
                x = add(f"aten.add.Tensor({add(f'aten.add.Tensor({x}, {a})')}, {b})")
            elif kind == "gate":
                x = add(f"aten.mul.Tensor({x}, {some(x, depth - 1)})")
            elif lines:
                x = add(f"aten.add.Tensor({x}, %v{draw(st.integers(0, len(lines) - 1))})")
        return x

    last = some("%x", 3)
    head = ["# burnish 1", "# facts: canonical", "constant @w: f32[3, 3]", "graph main(%x: f32[B, 3]) {"]
    return "\n".join([*head, *lines, f"  return {last}", "}", ""])


# The block v2 is no part of what the block v6 computes from its source, and dies with it all the same.
_DIES_TOO = """# burnish 1
# facts: canonical
constant @w: f32[3, 3]
graph main(%x: f32[B, 3]) {
  %v0 = aten.linear(%x, @w)
  %v1 = aten.linear(%x, @w)
  %v2 = aten.add.Tensor(%x, %v1)
  %v3 = aten.add.Tensor(%x, %v0)
  %v4 = aten.add.Tensor(%v3, %v2)
  %v5 = aten.linear(%v4, @w)
  %v6 = aten.add.Tensor(%v5, %v0)
  return %v6
}
"""


@given(st.one_of(residual_texts(), programs()), st.floats(0.1, 0.95))
@example(_DIES_TOO, 0.5)
@settings(max_examples=80, deadline=None)
def test_random_programs(text: str, ratio: float) -> None:
    program = run_pipeline(Pipeline.parse("canonicalize,dce"), Program.parse(text), Context())[0]
    blocks = {name_of(block.sum) for block in blocks_of(program, Rewriter(program, "test"))}
    assert blocks == _brute_force(program)
    after, record, context = _prune(program, f"ratio={ratio}")
    if record.changed:
        args, kwargs = program.sample_arguments()
        found, expected = after(*args, **kwargs), _without(program, _named(context))(*args, **kwargs)
        leaves = torch.utils._pytree.tree_leaves
        assert worst_drift(leaves(found), leaves(expected)) < 1e-6
    left = {name_of(node) for node in Rewriter(after, "test").nodes("aten.add.Tensor")}
    assert len(blocks - left) <= ratio * len(blocks) + 1e-6
    told = context.notes[0].replace("none of", "0 of")
    assert told.startswith(f"prune-blocks removed {len(blocks - left)} of {len(blocks)} residual blocks")


def test_time_is_linear_in_blocks() -> None:
    def seconds(count: int) -> float:
        lines, x = [], "%x"
        for index in range(count):
            lines += [f"  %f{index} = aten.linear({x}, @w)", f"  %x{index} = aten.add.Tensor({x}, %f{index})"]
            x = f"%x{index}"
        head = ["# burnish 1", "# facts: canonical", "constant @w: f32[3, 3]", "graph main(%x: f32[B, 3]) {"]
        program = Program.parse("\n".join([*head, *lines, f"  return {x}", "}", ""]))
        # What other tests left is not to be looked through.
        gc.collect()
        gc.disable()
        try:
            start = time.process_time()
            _prune(program, "ratio=0.5")
            return time.process_time() - start
        finally:
            gc.enable()

    # Eight times the blocks; what looks at the graph for every block would take 64 times as long.
    small, large = (min(seconds(count) for _ in range(2)) for count in (400, 3200))
    assert large < 24 * small


_NESTED = """# burnish 1
# facts: canonical
constant @w: f32[4, 4]
graph main(%x: f32[B, 4]) {{
  %a = aten.linear(%x, @w)
  %small = aten.mul.Tensor(%a, {inner})
  %inner = aten.add.Tensor(%x, %small)
  %b = aten.linear(%inner, @w)
  %scaled = aten.mul.Tensor(%b, {outer})
  %outer = aten.add.Tensor(%x, %scaled)
  %c = aten.linear(%outer, @w)
  %small_too = aten.mul.Tensor(%c, 0.01)
  %next = aten.add.Tensor(%small_too, %outer)
  %d = aten.linear(%next, @w)
  %last = aten.add.Tensor(%next, %d)
  %y = aten.tanh(%last)
  return %y
}}
"""


@pytest.mark.parametrize(
    ("inner", "outer", "ratio", "removed", "count"),
    [
        # The outer one matters least, but would be two blocks of one.
        (1, 0.001, 0.25, {"next"}, 1),
        (1, 0.001, 0.5, {"outer"}, 2),
        (1, 0.001, 0.75, {"outer", "next"}, 3),
        # The inner one goes first, the outer one after it.
        (0.001, 0.002, 0.25, {"inner"}, 1),
        (0.001, 0.002, 0.5, {"inner", "outer"}, 2),
        # The inner one is next, and has gone already.
        (0.002, 0.001, 0.75, {"outer", "next"}, 3),
    ],
)
def test_nested_blocks(inner: float, outer: float, ratio: float, removed: set[str], count: int) -> None:
    program = Program.parse(_NESTED.format(inner=inner, outer=outer))
    after, _, context = _prune(program, f"ratio={ratio}")
    assert context.notes[0].startswith(f"prune-blocks removed {count} of 4 residual blocks")
    assert _named(context) == removed
    left = {name_of(node) for node in Rewriter(after, "test").nodes("aten.add.Tensor")}
    gone = removed | ({"inner"} if "outer" in removed else set())
    assert left == {"inner", "outer", "next", "last"} - gone
    x = torch.randn(3, 4)
    assert torch.allclose(after(x), _without(program, removed)(x))


def test_a_block_that_does_nothing_is_not_kept_for_zeros() -> None:
    """Where the residual stream is zero, the angle is that of equal values."""
    text = """# burnish 1
# facts: canonical
constant @w: f32[4, 4]
graph main(%x: f32[B, 4]) {
  %zero = aten.mul.Tensor(%x, 0)
  %a = aten.linear(%zero, @w)
  %first = aten.add.Tensor(%zero, %a)
  %shifted = aten.add.Tensor(%first, 1)
  %b = aten.linear(%shifted, @w)
  %second = aten.add.Tensor(%shifted, %b)
  return %second
}
"""
    _, _, context = _prune(Program.parse(text), "ratio=0.5")
    assert "importance: first 0 (" in context.notes[0]


def test_blocks_of_stages() -> None:
    text = """# burnish 1
# facts: canonical
constant @w: f32[4, 4]
constant @v: f32[4, 4]
graph one(%x: f32[B, 4]) {
  %a = aten.linear(%x, @w)
  %h = aten.add.Tensor(%x, %a)
  return h=%h
}
graph two(%h: f32[B, 4]) {
  %b = aten.linear(%h, @v)
  %y = aten.add.Tensor(%h, %b)
  return y=%y
}
"""
    program = Program.parse(text, {"w": torch.eye(4).flip(0), "v": 0.01 * torch.eye(4).flip(0)})
    after, _, context = _prune(program, "ratio=0.5")
    assert "importance: y 0 (" in context.notes[0]
    x = torch.randn(3, 4)
    assert torch.equal(after(x), x + x.flip(1))


def test_kept_blocks() -> None:
    model = _ResNet().eval()
    _scale(model.blocks[2].second, 1e-3)
    _scale(model.blocks[1].second, 1e-2)
    program = burnish.capture(model, (torch.randn(2, 3, 12, 12),))
    for keep in ("blocks.2*", "blocks.2.first", "blocks.2.first.weight"):
        after, record, context = _prune(program, f"ratio=0.34,keep=[{keep}]")
        assert context.notes[0].startswith("prune-blocks removed 1 of 3 residual blocks, by importance: blocks.1.add ")
        assert f"it is to be kept: '{keep}'" in {skip.reason for skip in record.skips}
        assert [name for name in after.used_constants() if name.startswith("blocks.2.")]
    with pytest.raises(burnish.PassError, match=r"no layer matches 'blocks\.7': there are blocks\.0\.first"):
        _prune(program, "keep=[blocks.7]")


@pytest.mark.parametrize(("ratio", "removed"), [(0, 0), (0.24, 0), (0.25, 1), (0.74, 2), (0.75, 3), (0.99, 3)])
def test_ratios_are_rounded_down(ratio: float, removed: int) -> None:
    program = burnish.capture(_ResNet().eval(), (torch.randn(2, 3, 12, 12),))
    after, record, context = _prune(program, f"ratio={ratio}")
    assert record.rules["prune-blocks"] == removed
    assert record.changed is bool(removed)
    assert sum(f"blocks.{index}.first.weight" in after.used_constants() for index in range(4)) == 4 - removed
    if not removed:
        assert context.notes == ["prune-blocks removed none of 4 residual blocks"]


def test_a_network_without_blocks() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    _, record, context = _prune(burnish.capture(model, (torch.randn(2, 4),)))
    (note,) = context.notes
    assert not record.changed and note.startswith("prune-blocks removed none of 0 residual blocks")
    assert "put prune-blocks before" in note


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
@pytest.mark.parametrize("kind", ["resnet", "transformer"])
def test_files_of_it(kind: str, backend: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    inputs = _tokens if kind == "transformer" else lambda batch: (torch.randn(batch, 3, 12, 12),)
    model = _Transformer() if kind == "transformer" else _ResNet()
    passes = "canonicalize,prune-blocks{ratio=0.5},default"
    compiled = burnish.compile(model.eval(), passes, inputs=inputs(2), backend=backend, calibration=[inputs(8)])
    path = tmp_path / f"model.{'onnx' if backend == 'onnx' else 'pt'}"
    compiled.save(path)
    loaded = burnish.load(path)
    assert any(note.startswith("prune-blocks removed") for note in compiled.report.notes)
    for batch in (1, 5):
        given = inputs(batch)
        assert torch.allclose(loaded(*given), compiled.program(*given), atol=1e-5)


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
def test_an_input_may_become_an_output(backend: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x + torch.tanh(self.a(x)), z + torch.tanh(self.b(z))

    model = Model().eval()
    _scale(model.b, 1e-3)
    inputs = torch.randn(3, 4), torch.randn(3, 4)
    compiled = burnish.compile(model, "canonicalize,prune-blocks{ratio=0.5}", inputs=inputs, backend=backend)
    first, second = compiled(*inputs)
    assert torch.allclose(first, model(*inputs)[0], atol=1e-6) and torch.equal(second, inputs[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "blocks"),
    # Shortcuts that compute are no blocks, activations that are spelled out neither (GPT-2); decoders give out keys.
    [("hf-resnet", 2), ("mobilenet_v2", 10), ("convnext", 2), ("vit", 4), ("swin", 4), ("bert", 4), ("gpt2", 2),
     ("llama", 2), ("densenet", 0)],
)  # fmt: skip
def test_networks(name: str, blocks: int) -> None:
    entry = _ZOO[name]
    program = burnish.capture(entry.model(), entry.inputs(2))
    after, record, context = _prune(program, "ratio=0.5")
    assert f"of {blocks} residual blocks" in context.notes[0]
    assert record.rules["prune-blocks"] == blocks // 2
    assert (after.parameter_count() < program.parameter_count()) is bool(blocks)
    given = [skip.reason.endswith("inside is read outside of it, by the outputs") for skip in record.skips]
    assert given == [True] * (2 if name in ("gpt2", "llama") else 0)


def test_data_that_are_missing() -> None:
    program = burnish.capture(_ResNet().eval(), (torch.randn(2, 3, 12, 12),))
    canonical = run_pipeline(Pipeline.parse("canonicalize"), program, Context())[0]
    canonical.samples = {}
    for context, message in (
        (Context(), "pass 'prune-blocks' measures blocks on data, and there are none: give calibration="),
        (Context(calibration=[]), "pass 'prune-blocks' needs calibration data, and calibration= is empty"),
        (Context(calibration=[torch.randn(2, 4, 12, 12)]), "calibration item 0"),
    ):
        copied = canonical.copy()
        with pytest.raises(InputError, match=message):
            PruneBlocks().run(copied, Rewriter(copied, "prune-blocks"), context)


@pytest.mark.parametrize("ratio", [1.0, -0.1, float("nan")])
def test_bad_ratios(ratio: float) -> None:
    with pytest.raises(OptionError, match="option 'ratio' must be from 0 to less than 1, but is"):
        PruneBlocks(ratio=ratio)
