"""Pruned Programs are what the original is with zeros where consumers read what went."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from benchmarks.models import decoders, encoders, images, sequences, vision
from burnish import Context, Pipeline, Program
from burnish.compiler.errors import PassError
from burnish.compiler.pipeline import PassRecord, run_pipeline
from burnish.passes.pruning.groups import groups_of
from burnish.passes.pruning.propagate import propagate
from tests.pruning_oracle import pruned
from tests.random_programs import programs

_CANONICAL = Pipeline.parse("canonicalize,fold-constants,dce")
_MODULES = (images, vision, encoders, decoders, sequences)
_ZOO = {entry.name: entry for module in _MODULES for entry in module.entries()}
# By name: the largest part of the parameters that may be left when half of every group goes.
_NETWORKS = {
    "resnet": 0.5, "mbconv-se": 0.6, "u-net": 0.5, "shufflenet": 0.6, "densenet": 0.6,
    "vgg": 0.5,
    "mobilenet_v2": 0.5, "efficientnet": 0.6, "convnext": 0.8, "vit": 0.8, "swin": 0.8, "bert": 0.9, "gpt2": 0.9,
    "llama": 0.9, "falcon": 0.9,
    "transformer-seq2seq": 0.9, "hf-resnet": 0.5, "mlp-mixer": 0.6, "autoencoder-spectral": 0.6,
}  # fmt: skip


def _canonical(model: nn.Module, inputs: Any) -> Program:
    program = burnish.capture(model.eval(), inputs)
    return run_pipeline(_CANONICAL, program, Context())[0]


def _prune(model: nn.Module, inputs: Any, options: str = "") -> tuple[Program, PassRecord, Context]:
    context = Context()
    program, records = run_pipeline(
        Pipeline.parse(f"canonicalize,prune{{{options}}}"), burnish.capture(model.eval(), inputs), context, verify=3
    )
    return program, records[-1], context


@pytest.mark.slow
@pytest.mark.parametrize("name", _NETWORKS)
def test_networks(name: str) -> None:
    entry = _ZOO[name]
    program = _canonical(entry.model(), entry.inputs(2))
    smaller, drift, _ = pruned(program)
    assert drift < 1e-4
    assert smaller.parameter_count() < _NETWORKS[name] * program.parameter_count()
    # Other sizes of the batch, and the text, are those of any Program.
    inputs = entry.inputs(3)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    smaller(*args, **kwargs)
    assert Program.parse(smaller.print(), smaller.constants).print() == smaller.print()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["condition", "graph-convolution", "top-k-experts", "lstm", "tied-weights", "two-tower", "embedding-bag"]
)
def test_networks_of_which_little_can_go(name: str) -> None:
    entry = _ZOO[name]
    _, drift, dependencies = pruned(_canonical(entry.model(), entry.inputs(2)))
    assert drift < 1e-4
    if name == "lstm":
        assert sum(dependencies.unknown.values()) == 1


@given(programs(), st.floats(0.1, 0.9), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_random_programs(text: str, ratio: float, seed: int) -> None:
    program, _ = run_pipeline(_CANONICAL, Program.parse(text), Context())
    assert pruned(program, ratio, seed)[1] < 1e-4


class _Attention(nn.Module):
    """Four heads on a residual stream whose size is an output's; with separate, packed or grouped projections."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.packed = nn.Linear(32, 96)
        self.query, self.key, self.value = (nn.Linear(32, size) for size in (32, 16, 16))
        self.out, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        if self.kind in ("chunk", "unbind"):
            packed = self.packed(self.norm(x))
            if self.kind == "chunk":
                q, k, v = (each.view(batch, tokens, 4, 8).transpose(1, 2) for each in packed.chunk(3, -1))
            else:
                q, k, v = packed.view(batch, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = self.query(x).view(batch, tokens, 4, 8).transpose(1, 2)
            k, v = (each(x).view(batch, tokens, 2, 8).transpose(1, 2) for each in (self.key, self.value))
            if self.kind == "repeated":
                k, v = (each[:, :, None].expand(-1, -1, 2, -1, -1).reshape(batch, 4, tokens, 8) for each in (k, v))
        grouped = self.kind == "grouped"
        if self.kind == "spelled out":
            k, v = (each.repeat_interleave(2, 1) for each in (k, v))
            attended = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        else:
            attended = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
        return x + self.out(attended.transpose(1, 2).reshape(batch, tokens, 32))


@pytest.mark.parametrize("kind", ["chunk", "unbind", "repeated", "grouped", "spelled out"])
def test_heads_are_found_from_the_views(kind: str) -> None:
    program = _canonical(_Attention(kind), (torch.randn(2, 5, 32),))
    (group,) = groups_of(program, propagate(program))
    # Two heads of queries go with each of keys and values where these are shared.
    assert len(group.classes) == (4 if kind in ("chunk", "unbind") else 2)
    smaller, drift, _ = pruned(program)
    assert drift < 1e-5
    assert smaller.parameter_count() < program.parameter_count()


class _Packed(nn.Module):
    """Batch and heads share a dimension inside, as `torch.nn` has it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("kind", ["chunk", "repeated", "grouped", "module"])
def test_heads_of_fused_attention(kind: str) -> None:
    model = _Packed() if kind == "module" else _Attention(kind)
    program = burnish.capture(model.eval(), (torch.randn(2, 5, 32),))
    program = run_pipeline(Pipeline.parse("canonicalize,fold-constants,fuse,dce"), program, Context())[0]
    assert any("attention" in str(node.target) for node in program.graphs["main"].nodes)
    (group,) = groups_of(program, propagate(program))
    assert len(group.classes) == (2 if kind in ("repeated", "grouped") else 4)
    smaller, drift, _ = pruned(program)
    assert drift < 1e-5
    assert smaller.parameter_count() < program.parameter_count()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "vit", "bert", "gpt2", "llama"])
def test_fused_networks(name: str) -> None:
    entry = _ZOO[name]
    program = burnish.capture(entry.model(), entry.inputs(2))
    program = run_pipeline(Pipeline.parse("canonicalize,fold-batch-norm,fold-constants,fuse,dce"), program, Context())[
        0
    ]
    smaller, drift, _ = pruned(program)
    assert drift < 1e-4
    assert smaller.parameter_count() < 0.95 * program.parameter_count()


def _group_sizes(model: nn.Module, inputs: Any) -> list[int]:
    program = _canonical(model, inputs)
    return [len(each.classes) for each in groups_of(program, propagate(program))]


def test_what_keeps_groups_equal() -> None:
    x = (torch.randn(2, 8, 6, 6),)
    head = nn.Conv2d(16, 4, 1)
    # One class has a channel of each group of the convolution, or all of a group of the norm.
    assert _group_sizes(nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1, groups=4), head), x) == [4, 4]
    assert _group_sizes(nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1, groups=16), head), x) == [16]
    assert _group_sizes(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 1, groups=8), head), x) == [8]
    assert _group_sizes(nn.Sequential(nn.Conv2d(8, 16, 1), nn.GroupNorm(4, 16), head), x) == [4]
    assert _group_sizes(nn.Sequential(nn.Conv2d(8, 16, 1), nn.GroupNorm(1, 16), head), x) == []
    assert _group_sizes(nn.Sequential(nn.Conv2d(8, 64, 1), nn.PixelShuffle(2), head), x) == [16]


def test_unknown_operators_stop_and_are_named() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.searchsorted(torch.zeros(len(x), 3), self.first(x)).float())

    _, record, context = _prune(Sorted(), (torch.randn(2, 8),))
    assert not record.changed
    assert any("aten.searchsorted" in note for note in context.notes)
    assert "prune found nothing to remove" in context.notes


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def _widths(program: Program) -> list[int]:
    return [program.constants[f"{name}.weight"].shape[0] for name in ("first", "second", "third")]


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ("ratio=0.5", [8, 12, 4]),
        ("ratio=0.25", [12, 18, 4]),
        ("ratio=0", [16, 24, 4]),
        ("ratio=0.99", [1, 1, 4]),
        ("ratio=0.4,round_to=8", [16, 16, 4]),
        ("ratio=0.5,keep=[first.*]", [16, 12, 4]),
        ("ratio=0.5,keep=[second.weight]", [16, 24, 4]),
    ],
)
def test_widths(options: str, widths: list[int]) -> None:
    program, _, _ = _prune(_Two(), (torch.randn(2, 3, 12, 12),), options)
    assert _widths(program) == widths


def test_the_least_important_go() -> None:
    model = _Two()
    weak = [1, 4, 5, 9]
    with torch.no_grad():
        model.first.weight[weak] *= 0.01
        model.second.weight[:, weak] *= 0.01
    for kind in ("l1", "l2"):
        program, _, _ = _prune(model, (torch.randn(2, 3, 12, 12),), f"ratio=0.25,importance={kind},keep=[third.weight]")
        stays = [index for index in range(16) if index not in weak]
        assert torch.equal(program.constants["first.weight"], model.first.weight[stays])


def test_global_ranking_takes_more_where_less_matters() -> None:
    model = _Two()
    with torch.no_grad():
        # The same mean, but most of it in a few channels.
        for weight, dim in ((model.second.weight, 0), (model.third.weight, 1)):
            weight.index_fill_(dim, torch.arange(4, 24), 1e-3)
    program, _, _ = _prune(model, (torch.randn(2, 3, 12, 12),), "ratio=0.5,ranking=global")
    first, second, _ = _widths(program)
    assert (first, second) == (16, 4)


@pytest.mark.parametrize(("backend", "suffix"), [("onnx", "onnx"), ("torchscript", "pt")])
def test_files_of_it(backend: str, suffix: str, tmp_path: Any) -> None:
    x = torch.randn(2, 3, 12, 12)
    compiled = burnish.compile(_Two().eval(), "canonicalize,prune,default", inputs=(x,), backend=backend)
    path = tmp_path / f"model.{suffix}"
    compiled.save(path)
    loaded = burnish.load(path)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 12, 12)
        assert torch.allclose(loaded(x), compiled.program(x), atol=1e-5)


def test_grouping_is_linear_in_layers() -> None:
    def seconds(count: int) -> float:
        lines = [f"  %v{index + 1} = aten.linear(%v{index}, @w{index})" for index in range(count)]
        constants = [f"constant @w{index}: f32[16, 16]" for index in range(count)]
        head = ["# burnish 1", *constants, "graph main(%v0: f32[B, 16]) {"]
        program = Program.parse("\n".join([*head, *lines, f"  return %v{count}", "}", ""]))
        start = time.process_time()
        assert len(groups_of(program, propagate(program))) == count - 1
        return time.process_time() - start

    small, large = (min(seconds(count) for _ in range(3)) for count in (250, 2_000))
    # Eight times the layers; what looks at all groups for each would take 64 times as long.
    assert large < 24 * small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=1", "option 'ratio' must be from 0 to less than 1, but is 1"),
        ("ratio=-0.1", "option 'ratio' must be"),
        ("round_to=0", "option 'round_to' must be 1 or more, but is 0"),
        ("keep=[nothing]", "nothing to prune matches 'nothing': there are first.bias, first.weight"),
        ("importance=l3", "must be 'l1' or 'l2' or 'batch-norm' or .*, but is 'l3'"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises((PassError, burnish.OptionError), match=message):
        _prune(_Two(), (torch.randn(2, 3, 12, 12),), options)


def test_numbers_of_classes_hold_for_any_dtype() -> None:
    program = _canonical(_Two().double(), (torch.randn(2, 3, 12, 12, dtype=torch.float64),))
    smaller, drift, _ = pruned(program)
    assert drift < 1e-12
    assert np.prod(smaller.constants["first.weight"].shape) == 8 * 3 * 9


@pytest.mark.parametrize(
    ("layer", "widths"),
    [
        (nn.ConvTranspose2d(16, 16, 3, groups=16), [8, 8]),
        (nn.ConvTranspose2d(16, 16, 3, groups=4), [8, 8]),
        (nn.ConvTranspose2d(16, 8, 3, groups=4), [8, 4]),
        (nn.ConvTranspose2d(16, 4, 3, groups=4), [8, 4]),
        (nn.ConvTranspose2d(16, 32, 3, groups=16), [8, 16]),
    ],
)
@pytest.mark.parametrize("passes", ["canonicalize", "canonicalize,fuse"])
def test_grouped_transposed_convolutions(layer: nn.ConvTranspose2d, widths: list[int], passes: str) -> None:
    torch.manual_seed(0)
    behind = nn.Conv2d(layer.out_channels, 4, 1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), layer, nn.InstanceNorm2d(layer.out_channels, affine=True), behind
    )
    program = Pipeline.parse(passes).run(burnish.capture(model.eval(), (torch.randn(2, 3, 9, 9),)), Context())
    smaller, drift, _ = pruned(program)
    assert drift < 1e-5
    assert [smaller.constants[name].shape[dim] for name, dim in (("0.weight", 0), ("4.weight", 1))] == widths


def test_masks_go_with_their_weights() -> None:
    x = torch.randn(2, 3, 12, 12)
    program = Pipeline.parse("canonicalize,sparsify{ratio=0.6}").run(burnish.capture(_Two().eval(), (x,)), Context())
    for name in ("first", "second"):
        # What a mask hides does not count, however large it is.
        hidden = ~program.constants[f"{name}.weight.mask"]
        program.constants[f"{name}.weight"] = program.constants[f"{name}.weight"] + 100 * hidden
    folded = Pipeline.parse("fold-constants").run(program, Context())
    one, other = (Pipeline.parse("prune{ratio=0.5},fold-constants").run(each, Context()) for each in (program, folded))
    assert _widths(Pipeline.parse("prune{ratio=0.5}").run(program, Context())) == [8, 12, 4]
    assert torch.allclose(one(x), other(x), atol=1e-5)


def test_products_of_two_activations() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.query(x) @ self.key(x).transpose(1, 2)) @ self.value(x)  # type: ignore[no-any-return]

    program = _canonical(Scores(), (torch.randn(2, 6, 8),))
    smaller, drift, _ = pruned(program)
    assert drift < 1e-5
    assert smaller.constants["query.weight"].shape == (12, 8)


class _Branches(nn.Module):
    """Sixteen channels go into a `cond`, whose branches have twelve of their own, and come out of it."""

    def __init__(self, reuse: bool) -> None:
        super().__init__()
        self.reuse = reuse
        self.first, self.last, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)
        self.inner, self.outer = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 1)

    def deep(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).sigmoid()).sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        predicate, x = x.sum() > 0, self.first(x).sigmoid()
        for _ in range(2 if self.reuse else 1):
            (x,) = torch.cond(predicate, lambda y: (self.deep(y),), lambda y: (y * 0.5,), (x,))
        return self.head(self.last(x).sigmoid().mean((2, 3)))


@pytest.mark.parametrize("reuse", [False, True])
def test_branches(reuse: bool) -> None:
    inputs = (torch.randn(2, 3, 8, 8),)
    program = _canonical(_Branches(reuse), inputs)
    smaller, drift, dependencies = pruned(program)
    assert drift < 1e-4 and not dependencies.unknown
    widths = {name: tuple(value.shape[:2]) for name, value in smaller.constants.items() if value.dim() == 4}
    assert widths == {"first.weight": (8, 3), "inner.weight": (6, 8), "outer.weight": (8, 6), "last.weight": (8, 8)}
    for predicate in (-1.0, 1.0):
        with torch.no_grad():
            program(inputs[0] * predicate), smaller(inputs[0] * predicate)
    assert Program.parse(smaller.print(), smaller.constants).print() == smaller.print()
    for backend in ("onnx", "torchscript"):
        compiled = burnish.compile(smaller.copy(), [], backend=backend, progress=False)
        torch.testing.assert_close(compiled(*inputs), smaller(*inputs), rtol=1e-4, atol=1e-5)


class _Interleaved(nn.Module):
    """Gates in even columns and values in odd ones, as gpt-oss has them."""

    def __init__(self, features: int, step: int) -> None:
        super().__init__()
        self.step = step
        self.first, self.last = nn.Linear(6, features), nn.Linear(-(-features // step), 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x[..., :: self.step].sigmoid() * x[..., 1 :: self.step])


def test_slices_in_steps() -> None:
    program = _canonical(_Interleaved(24, 2), (torch.randn(2, 6),))
    smaller, drift, _ = pruned(program)
    assert drift < 1e-4
    assert smaller.constants["first.weight"].shape == (12, 6) and smaller.constants["last.weight"].shape == (4, 6)
