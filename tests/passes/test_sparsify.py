"""sparsify: which weights go and how many, masks that stay, and files of what is left."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from benchmarks.models import decoders, encoders, images
from burnish import Context, OptionError, Pipeline, Program
from burnish.compiler.interpreter import run_graph
from burnish.compiler.numerics import worst_drift
from burnish.compiler.pipeline import PassRecord, run_pipeline
from burnish.passes.pruning import Sparsify
from burnish.passes.pruning.masks import masks_of
from tests.random_programs import programs

_ZOO = {entry.name: entry for module in (images, encoders, decoders) for entry in module.entries()}


def _chain(*shapes: tuple[int, int]) -> str:
    """Return the text of linear layers in a row, `a0`, `a1`, ..., by the shapes [O, I] of their weights."""
    constants = [f"constant @w{index}: f32[{o}, {i}]" for index, (o, i) in enumerate(shapes)]
    lines = [f"  %a{index + 1} = aten.linear(%a{index}, @w{index})" for index in range(len(shapes))]
    head = ["# burnish 1", "# facts: canonical", *constants, f"graph main(%a0: f32[B, {shapes[0][1]}]) {{"]
    return "\n".join([*head, *lines, f"  return %a{len(shapes)}", "}", ""])


def _run(passes: str | Sparsify, program: Program, verify: int = 4) -> tuple[Program, PassRecord, Context]:
    context = Context()
    after, records = run_pipeline(Pipeline([passes]), program, context, verify=verify)
    return after, records[-1], context


def _masks(program: Program) -> dict[str, torch.Tensor]:
    return {weight: program.constants[mask] for weight, mask in masks_of(program).items()}


@given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    ratio=st.floats(0, 0.99),
    scope=st.sampled_from(["global", "layer"]),
    few=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_the_smallest_go_and_their_number_is_exact(
    sizes: list[int], ratio: float, scope: str, few: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(after, before) for before, after in pairwise(sizes)]
    # Of few different values, most are equal to others.
    weights = {
        f"w{index}": torch.randint(-2, 3, shape, generator=generator).float()
        if few
        else torch.randn(shape, generator=generator)
        for index, shape in enumerate(shapes)
    }
    program = Program.parse(_chain(*shapes), weights)
    after, _, _ = _run(f"sparsify{{ratio={ratio},scope={scope}}}", program)
    masks = _masks(after)
    found = [
        (weight.flatten(), masks.get(name, torch.ones_like(weight).bool()).flatten())
        for name, weight in weights.items()
    ]
    groups = [(torch.cat([w for w, _ in found]), torch.cat([m for _, m in found]))] if scope == "global" else found
    for weight, mask in groups:
        count = int(ratio * len(weight) + 1e-6)
        # An ordering of Python's, by magnitude and place.
        order = sorted(range(len(weight)), key=lambda index: (abs(float(weight[index])), index))
        assert sorted(order[:count]) == (~mask).nonzero().flatten().tolist()
    x = torch.randn(3, sizes[0])
    expected = x
    for name, weight in weights.items():
        expected = nn.functional.linear(expected, weight * masks.get(name, torch.ones_like(weight).bool()))
    assert torch.equal(after(x), expected)


def test_ratios_that_floats_cannot_hold() -> None:
    after, _, _ = _run("sparsify{ratio=0.29}", Program.parse(_chain((10, 10))))
    assert int((~_masks(after)["w0"]).sum()) == 29


@pytest.mark.parametrize("dtypes", [("f16", "f16"), ("bf16", "bf16"), ("bf16", "f32"), ("f64", "f32")])
def test_other_dtypes_count_exactly(dtypes: tuple[str, str]) -> None:
    first, second = dtypes
    text = f"""# burnish 1
# facts: canonical
constant @w0: {first}[32, 32]
constant @w1: {second}[8, 32]
graph main(%x: {first}[B, 32]) {{
  %a = aten.linear(%x, @w0)
  %c = aten._to_copy(%a, dtype={second})
  %y = aten.linear(%c, @w1)
  return %y
}}
"""
    after, _, _ = _run("sparsify{ratio=0.4}", Program.parse(text))
    assert sum(int((~mask).sum()) for mask in _masks(after).values()) == int(0.4 * 1280)
    assert after(torch.randn(2, 32).to(after.constants["w0"].dtype)).isfinite().all()


_LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(8, 6),
    "conv1d": lambda: nn.Conv1d(8, 6, 3),
    "conv2d": lambda: nn.Conv2d(8, 6, 3),
    "conv3d": lambda: nn.Conv3d(8, 6, 2),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, 3),
    "grouped transposed": lambda: nn.ConvTranspose1d(8, 6, 3, groups=2),
}


@pytest.mark.parametrize(("several", "of"), [(1, 2), (2, 4), (3, 4)])
@pytest.mark.parametrize("kind", _LAYERS)
def test_rows_of_inputs(kind: str, several: int, of: int) -> None:
    torch.manual_seed(0)
    layer = _LAYERS[kind]().eval().requires_grad_(False)
    x = torch.randn(2, 8, *[5] * (layer.weight.dim() - 2))
    program = _run(f'canonicalize,sparsify{{pattern="{several}:{of}"}}', burnish.capture(layer, (x,)))[0]
    mask = _masks(program)["weight"]
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
        # [I, O / groups, ...]: the inputs of a group stand together.
        inputs = [(part, whole) for part, whole in zip(mask.chunk(groups), layer.weight.chunk(groups), strict=True)]
        rows = [(part.movedim(0, -1), whole.movedim(0, -1)) for part, whole in inputs]
    else:
        rows = [(mask.movedim(1, -1), layer.weight.movedim(1, -1))]
    for part, whole in rows:
        for kept, values in zip(part.reshape(-1, of), whole.reshape(-1, of), strict=True):
            assert int(kept.sum()) == several
            assert float(values[kept].abs().min()) >= float(values[~kept].abs().max())
    layer.weight *= mask
    assert torch.allclose(program(x), layer(x), atol=1e-6)


def test_equal_weights_go_from_the_front() -> None:
    weights = {"w0": torch.ones(2, 4)}
    program = Program.parse(_chain((2, 4)), weights)
    assert _masks(_run("sparsify{ratio=0.375}", program)[0])["w0"].flatten().tolist() == [False] * 3 + [True] * 5
    rows = _masks(_run('sparsify{pattern="1:4"}', program)[0])["w0"]
    assert rows.tolist() == [[False, False, False, True]] * 2


def test_what_is_masked_stays_masked() -> None:
    program = Program.parse(_chain((8, 8), (8, 8)))
    first, _, _ = _run("sparsify{ratio=0.25}", program)
    second, _, _ = _run("sparsify{ratio=0.75,scope=layer}", first)
    rows, _, _ = _run('sparsify{pattern="2:4"}', second)
    counts = []
    for before, after in ((first, second), (second, rows)):
        assert masks_of(before) == masks_of(after) == {"w0": "w0.mask", "w1": "w1.mask"}
        for name, mask in _masks(after).items():
            assert not bool((mask & ~_masks(before)[name]).any())
        counts.append([int((~mask).sum()) for mask in _masks(after).values()])
    assert counts[0] == [48, 48] and sum(counts[1]) > 96
    # Another copy of the Program keeps its own.
    assert sum(int((~mask).sum()) for mask in _masks(first).values()) == 32


def test_a_masked_weight_goes_before_one_that_is_zero() -> None:
    text = """# burnish 1
# facts: canonical
constant @w: f32[1, 4]
constant @m: b1[1, 4]
graph main(%x: f32[B, 4]) {
  %masked = aten.mul.Tensor(@m, @w)
  %y = aten.linear(%x, %masked)
  return %y
}
"""
    mask = torch.tensor([[True, True, True, False]])
    program = Program.parse(text, {"w": torch.tensor([[0.0, 2.0, 3.0, 4.0]]), "m": mask})
    after, record, context = _run("sparsify{ratio=0.25}", program)
    assert not record.changed and torch.equal(_masks(after)["w"], mask)
    assert context.notes == ["sparsify: 2 of 4 weights in 1 tensors are zero (50.0%)"]
    after, _, _ = _run("sparsify{ratio=0.5}", program)
    assert _masks(after)["w"].tolist() == [[False, True, True, False]]


def test_weights_of_several_stages_share_a_mask() -> None:
    text = """# burnish 1
# facts: canonical
constant @w: f32[4, 4]
graph first(%x: f32[B, 4]) {
  %a = aten.linear(%x, @w)
  return a=%a
}
graph second(%a: f32[B, 4]) {
  %b = aten.linear(%a, @w)
  return b=%b
}
"""
    after, _, _ = _run("sparsify", Program.parse(text))
    assert masks_of(after) == {"w": "w.mask"}
    assert after.print().count("aten.mul.Tensor(@w, @w.mask)") == 2
    again, record, _ = _run("sparsify{ratio=0.75}", after)
    assert record.changed and int((~_masks(again)["w"]).sum()) == 12


def test_gradients_vanish_where_the_mask_is_false() -> None:
    program, _, _ = _run("sparsify", Program.parse(_chain((4, 6), (3, 4))))
    program.constants |= {name: program.constants[name].clone().requires_grad_() for name in ("w0", "w1")}
    outputs = run_graph(program, program.graphs["main"], [torch.randn(5, 6)], {})
    sum(each.square().sum() for each in outputs.values()).backward()
    for name, mask in _masks(program).items():
        assert torch.equal(program.constants[name].grad != 0, mask)


@pytest.mark.parametrize(("weight", "mask"), [("w", "n"), ("v", "m")])
def test_masks_that_are_not_a_weights_own(weight: str, mask: str) -> None:
    """One weight with two masks; one mask of two weights."""
    text = f"""# burnish 1
# facts: canonical
constant @w: f32[4, 4]
constant @v: f32[4, 4]
constant @m: b1[4, 4]
constant @n: b1[4, 4]
graph main(%x: f32[B, 4]) {{
  %masked = aten.mul.Tensor(@w, @m)
  %also = aten.mul.Tensor(@{weight}, @{mask})
  %y = aten.linear(%x, %masked)
  %z = aten.linear(%y, %also)
  return %z
}}
"""
    program = Program.parse(text)
    assert masks_of(program) == {}
    _, record, _ = _run("sparsify", program)
    assert not record.changed
    assert [skip.reason for skip in record.skips] == ["its weight is not a constant"] * 2


def test_masks_that_a_run_updates_are_none() -> None:
    text = """# burnish 1
# facts: canonical
constant @w: f32[4, 4]
constant @m: b1[4, 4]
constant @v: f32[4, 4]
constant @v.mask: b1[4, 4]
graph main(%x: f32[B, 4]) {
  %masked = aten.mul.Tensor(@w, @m)
  %y = aten.linear(%x, %masked)
  %also = aten.mul.Tensor(@v, @v.mask)
  %z = aten.linear(%y, %also)
  %flipped = aten.logical_not(@m)
  %update = aten.copy_(@m, %flipped)
  return %z
}
"""
    assert masks_of(Program.parse(text)) == {"v": "v.mask"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.tensor([[1.0, float("nan")]]), "its weight is not finite"),
        (torch.tensor([[1.0, float("inf")]]), "its weight is not finite"),
        (torch.zeros(0, 2), "its weight is empty"),
    ],
)
def test_weights_without_an_order(value: torch.Tensor, reason: str) -> None:
    program = Program.parse(_chain((len(value), 2)), {"w0": value})
    _, record, context = _run("sparsify", program, verify=3)
    assert not record.changed
    assert [skip.reason for skip in record.skips] == [reason]
    assert context.notes == ["sparsify found no weight to mask"]


@given(programs(), st.sampled_from(["", "{ratio=0.9,scope=layer}", '{pattern="1:2"}']))
@settings(max_examples=30, deadline=None)
def test_random_programs(text: str, options: str) -> None:
    program = run_pipeline(Pipeline.parse("canonicalize"), Program.parse(text), Context())[0]
    sparse, _, _ = _run(f"sparsify{options}", program)
    # The oracle: the same graph with zeros for weights.
    zeros = program.copy()
    zeros.constants |= {name: zeros.constants[name] * mask for name, mask in _masks(sparse).items()}
    args, kwargs = program.sample_arguments()
    leaves = torch.utils._pytree.tree_leaves
    expected = leaves(zeros(*args, **kwargs))
    assert worst_drift(leaves(sparse(*args, **kwargs)), expected) < 1e-6
    folded, _, _ = _run("fold-constants,fold-batch-norm,fuse,dce", sparse)
    assert not masks_of(folded)
    assert worst_drift(leaves(folded(*args, **kwargs)), expected) < 1e-3


class _Net(nn.Module):
    """A convolution with a batch norm, a transposed one, attention's weights shared, and a tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.table = nn.Embedding(10, 8)
        self.shared = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        maps = self.up(torch.relu(self.norm(self.conv(x))))
        tokens = self.shared(torch.relu(self.shared(maps.flatten(2).transpose(1, 2).mean(1))))
        return nn.functional.linear(tokens + self.table(ids), self.table.weight)


def _inputs(batch: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, 3, 8, 8), torch.randint(0, 10, (batch,))


def _zeros(program: Program) -> float:
    weights = [value for value in program.used_constants().values() if value.is_floating_point() and value.dim() > 1]
    return sum(int((each == 0).sum()) for each in weights) / sum(each.numel() for each in weights)


_PIPELINES = (
    "canonicalize,sparsify",
    "canonicalize,sparsify,fold-constants,fold-batch-norm,fuse",
    "default,sparsify,fold-constants",
    "default,sparsify",
    'default,sparsify{pattern="2:4"},fold-constants',
    "canonicalize,prune{ratio=0.25},sparsify,default",
)


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
@pytest.mark.parametrize("passes", _PIPELINES)
def test_files_of_it(passes: str, backend: str, tmp_path: Any) -> None:
    compiled = burnish.compile(_Net().eval(), passes, inputs=_inputs(2), backend=backend, verify=3)
    path = tmp_path / f"model.{'onnx' if backend == 'onnx' else 'pt'}"
    compiled.save(path)
    loaded = burnish.load(path)
    for batch in (1, 5):
        inputs = _inputs(batch)
        assert torch.allclose(loaded(*inputs), compiled.program(*inputs), atol=1e-5)
    folded = "sparsify" not in passes.rsplit(",", 1)[1]
    assert bool(masks_of(compiled.program)) is not folded
    if folded:
        # The convolution's three inputs are no multiple of four; the shared table counts once.
        assert 0.3 < _zeros(compiled.program) < 0.55


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
@pytest.mark.parametrize("name", ["resnet", "mbconv-se", "bert", "gpt2", "llama"])
def test_networks(name: str, backend: str) -> None:
    entry = _ZOO[name]
    inputs = entry.inputs(2)
    compiled = burnish.compile(entry.model(), "default,sparsify,fold-constants", inputs=inputs, backend=backend)
    assert _zeros(compiled.program) > 0.3
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    leaves = torch.utils._pytree.tree_leaves
    assert worst_drift(leaves(compiled(*args, **kwargs)), leaves(compiled.program(*args, **kwargs))) < 1e-3


def test_quantized_weights_keep_their_zeros() -> None:
    data = [torch.randn(8, 32) for _ in range(4)]
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    passes = "default,sparsify{ratio=0.75,scope=layer},fold-constants,quantize"
    compiled = burnish.compile(model, passes, inputs=(data[0],), backend="onnx", calibration=data)
    integers = [each for each in compiled.program.used_constants().values() if each.dtype == torch.int8]
    assert len(integers) == 2
    assert all(int((each == 0).sum()) >= 0.75 * each.numel() for each in integers)


def test_notes_say_what_is_reached() -> None:
    _, _, context = _run("sparsify{ratio=0.9}", Program.parse(_chain((100, 10), (20, 100))), verify=3)
    assert context.notes == ["sparsify: 2,700 of 3,000 weights in 2 tensors are zero (90.0%)"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "option 'ratio' must be from 0 to less than 1, but is 1.0"),
        ({"ratio": -0.1}, "option 'ratio' must be"),
        ({"ratio": float("nan")}, "option 'ratio' must be"),
        ({"pattern": "4:2"}, "'pattern' must be unstructured, or N:M with 0 < N < M, as in \"2:4\", but is '4:2'"),
        ({"pattern": "0:4"}, "must be unstructured, or N:M"),
        ({"pattern": "2:4:8"}, "must be unstructured, or N:M"),
        ({"pattern": "blocks"}, "must be unstructured, or N:M"),
        (
            {"pattern": "2:4", "ratio": 0.6},
            "option 'ratio' has no meaning with pattern='2:4', which keeps 2 of every 4",
        ),
        ({"pattern": "2:4", "scope": "layer"}, "option 'scope' has no meaning with pattern='2:4'"),
        ({"scope": "local"}, "must be 'global' or 'layer', but is 'local'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Sparsify(**options)


def test_a_pattern_of_keep_that_matches_nothing() -> None:
    with pytest.raises(OptionError, match="pass 'sparsify': no layer matches 'head': there are a1, a2"):
        Sparsify(keep=("head",)).run(*_bare(Program.parse(_chain((4, 4), (4, 4)))))


def _bare(program: Program) -> tuple[Program, burnish.Rewriter, Context]:
    return program, burnish.Rewriter(program, "sparsify"), Context()


def test_the_text_of_a_pattern_is_quoted() -> None:
    assert str(Sparsify(pattern="2:4")) == 'sparsify{pattern="2:4"}'
    assert Pipeline.parse(str(Sparsify(pattern="2:4"))).passes == (Sparsify(pattern="2:4"),)
