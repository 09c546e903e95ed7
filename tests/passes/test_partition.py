"""partition: stages compute what the whole computes, cut where it says, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

import burnish
from burnish import Context, OptionError, PassError, Pipeline, Program
from burnish.compiler.graphs import calls, name_of, output_of, placeholders
from burnish.compiler.profile import Profile, ProfileRow
from burnish.compiler.stages import stage_programs
from burnish.compiler.verify import verify
from burnish.passes.partition import Device, Partition
from burnish.passes.partition.units import units_of
from tests.random_programs import programs
from tests.test_properties import _SETTINGS, leaves


class Net(nn.Module):
    """Layers with a skip over all of them, and a mask that every layer reads."""

    def __init__(self, layers: int = 4, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        first = x = self.embed(ids)
        for layer in self.layers:
            x = layer(x).relu() * keep[..., None]
        return {"logits": self.head(x + first), "pooled": x.mean(1)}


def inputs(batch: int, tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 20, (batch, tokens), generator=generator), torch.ones(batch, tokens)


def captured(**options: Any) -> Program:
    return burnish.capture(Net(**options).eval(), inputs(4))


def cut(program: Program, options: str, before: str = "canonicalize,cse,dce") -> tuple[Program, list[str]]:
    context = Context(progress=False)
    found = Pipeline.parse(f"{before},partition{{{options}}}").run(program, context, verify=4)
    return found, context.notes


def _stages(program: Program) -> dict[str, list[str]]:
    return {name: [name_of(node) for node in calls(graph)] for name, graph in program.graphs.items()}


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("objective", ["throughput", "latency", "memory"])
def test_stages_compute_what_the_whole_computes(count: int, objective: str) -> None:
    program = captured()
    found, notes = cut(program, f"stages={count},objective={objective}")
    assert list(found.graphs) == [f"stage{index + 1}" for index in range(count)]
    verify(found, 3)
    for batch in (1, 4, 9):
        torch.testing.assert_close(found(*inputs(batch)), program(*inputs(batch)), rtol=0, atol=0)
    assert sum(note.startswith("partition: stage") for note in notes) == count
    assert found.parameter_count() == program.parameter_count(), "a tied weight stays one constant"


@given(text=programs())
@_SETTINGS
def test_any_program_can_be_cut(text: str) -> None:
    program = Pipeline.parse("canonicalize,dce").run(Program.parse(text))
    units = len(units_of(program).members)
    for count in {2, min(units, 4), units}:
        if not 2 <= count <= units:
            continue
        found = Pipeline([Partition(stages=count)]).run(program, Context(progress=False), verify=3)
        for batch in (1, 3):
            x = torch.randn((batch, *program.samples["x"].shape[1:]), generator=torch.Generator().manual_seed(batch))
            expected = leaves(program(x))
            for actual, wanted in zip(leaves(found(x)), expected, strict=True):
                assert torch.equal(actual.nan_to_num(), wanted.nan_to_num())
        values: dict[str, Any] = dict(program.samples)
        for name, stage in stage_programs(found).items():
            names = list(output_of(found.graphs[name]).args[0])  # type: ignore[arg-type]
            given_names = [str(node.target) for node in placeholders(found.graphs[name])]
            values.update(zip(names, stage(*(values[each] for each in given_names)), strict=True))
        alone = [values[name] for name in program.signature.output_names]
        for actual, wanted in zip(alone, leaves(program(program.samples["x"])), strict=True):
            assert torch.equal(actual.nan_to_num(), wanted.nan_to_num())


def test_no_stage_is_slower_than_an_even_share_allows() -> None:
    """Sixteen equal layers on four equal devices: four each."""
    program = burnish.capture(nn.Sequential(*(nn.Linear(64, 64) for _ in range(16))), (torch.randn(4, 64),))
    found, notes = cut(program, "stages=4,latency=0,bandwidth=1e15")
    assert [len(stage) for stage in _stages(found).values()] == [4, 4, 4, 4]
    assert any("which no plan betters" in note for note in notes)


def test_a_faster_device_gets_more() -> None:
    program = burnish.capture(nn.Sequential(*(nn.Linear(64, 64) for _ in range(16))), (torch.randn(4, 64),))
    slow, fast = Device(flops=1e9, bandwidth=1e9), Device(flops=3e9, bandwidth=3e9)
    passes = Pipeline(["canonicalize", Partition(devices=(slow, fast), latency=0.0, bandwidth=1e15)])
    found = passes.run(program, Context(progress=False))
    assert [len(stage) for stage in _stages(found).values()] == [4, 12]
    assert Pipeline.parse(str(passes)).run(program, Context(progress=False)).print() == found.print()


def test_cuts_by_hand() -> None:
    program = captured()
    found, _ = cut(program, 'cuts="embed + layers 0-1 | 2 | 3 + head"')
    modules = ("embed", "layers.0", "layers.1", "layers.2", "layers.3", "head")
    assert [[each for each in modules if each in stage] for stage in _stages(found).values()] == [
        ["embed", "layers.0", "layers.1"],
        ["layers.2"],
        ["layers.3", "head"],
    ]
    torch.testing.assert_close(found(*inputs(3)), program(*inputs(3)), rtol=0, atol=0)


def test_tied_weights_stay_together() -> None:
    found, _ = cut(captured(), "stages=2,tied=together")
    assert [{"embed", "head"} <= set(stage) for stage in _stages(found).values()].count(True) == 1
    program = burnish.capture(_Tied().eval(), (torch.randn(4, 8),))
    for tied, shared in (("together", False), ("copy", True)):
        found, _ = cut(program, f"stages=2,tied={tied}")
        readers = [any("first.weight" in str(node.target) for node in graph.nodes) for graph in found.graphs.values()]
        assert all(readers) == shared


class _Tied(nn.Module):
    """A layer that is used twice, then others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.first(x).relu()).relu())


class _Counting(nn.Module):
    """Counts its calls in a buffer that two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + self.calls
        self.calls += 1
        return self.third(self.second(x) * self.calls)


def test_a_buffer_that_is_updated_stays_in_one_stage() -> None:
    program = burnish.capture(_Counting().eval(), (torch.randn(4, 8),))
    found, _ = cut(program, "stages=2")
    assert sum("@calls" in str(graph) or any(n.target == "calls" for n in graph.nodes)
               for graph in found.graphs.values()) == 1  # fmt: skip
    x = torch.randn(3, 8)
    for _ in range(3):
        torch.testing.assert_close(found(x), program(x))


def test_measured_times_count_where_there_are_some() -> None:
    program = burnish.capture(nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))), (torch.randn(4, 64),))
    # As a runtime names nodes: after an operator, with something added; a row of its own; one of the module alone.
    seconds = {"_0": 6.0, "_1_nchwc": 1.0, "_2": 1.0, "reorder_7": 1.0, "_4": 1.0, "_5": 1.0, "_6": 1.0, "_7": 1.0}
    rows = [ProfileRow(name, "Gemm", "3" if name == "reorder_7" else "", each) for name, each in seconds.items()]
    context = Context(progress=False, profile=lambda _: Profile(rows))
    passes = Pipeline.parse("canonicalize,partition{stages=2,times=measured,latency=0}")
    assert [len(stage) for stage in _stages(passes.run(program, context)).values()] == [1, 7]
    assert any("stage1 has 1 operators: 6 s computing" in note for note in context.notes)
    with pytest.raises(PassError, match="runs without a backend"):
        cut(captured(), "times=measured")


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
def test_times_are_measured_on_the_backend(backend: str) -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Softmax(-1)) for _ in range(6))).eval()
    x = torch.randn(4, 64)
    compiled = burnish.compile(
        model, "default,partition{stages=3,times=measured}", inputs=(x,), backend=backend, progress=False
    )
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_timelines_are_written(tmp_path: Path) -> None:
    _, notes = cut(captured(), f'stages=4,timeline="{tmp_path}/t.txt"')
    text = (tmp_path / "t.txt").read_text()
    assert all(f"{name}: " in text for name in ("inference", "gpipe", "1f1b", "interleaved on 2 devices"))
    assert any("idle with 8 micro-batches: inference" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("stages=1", "option 'stages' must be 2 or more, but is 1"),
        ("stages=200", r"200 stages are wanted, but the model has \d+ parts to share out: stages=\d+ is the most"),
        ("stages=3,devices=[\"memory=1G\",\"memory=2G\"]", "3 stages need 3 devices, or one for all, not 2"),
        ('devices=["memory=1G"]', "one device is one stage: say how many with stages="),
        ('stages=2,devices=["memory=lots"]', "'memory=lots' should be one of memory, flops, bandwidth, with an amount"),
        ('stages=2,devices=["flops=0"]', "a device's flops must be 1 or more, but is 0"),
        ('stages=2,devices=["memory=1k"]', r"memory does not suffice: 2 stages fit with memory=[\d.]+k each, none"),
        ("bandwidth=0", "option 'bandwidth' must be a number, 1 or more, but is 0"),
        ("latency=-1", "option 'latency' must be a number, 0 or more, but is -1"),
        ("micro_batches=0", "option 'micro_batches' must be 1 or more, but is 0"),
        ("timeline=t.png", r"option 'timeline' must be \.svg or \.txt, but is 't.png'"),
        ('cuts="embed | layers 0-3 + head",stages=2', "stages and objective say nothing"),
        ('cuts="embed"', "option 'cuts' has one stage alone: put | between stages: 'embed'"),
        ('cuts="embed | layers 0-100000000"', "'layers 0-100000000' in 'cuts' names more modules than the model"),
        ("latency=inf", "option 'latency' must be a number, 0 or more, but is inf"),
        ('cuts="embed | "', "option 'cuts' must be stages with | between them"),
        ('cuts="embed | 0-3"', "the range '0-3' in 'cuts' has no module path before it"),
        ('cuts="embed | layers 3-1"', "the range 'layers 3-1' in 'cuts' ends before it starts"),
        ('cuts="embed | nowhere"', "no operator is in the module 'nowhere' of 'cuts': there are embed, layers, head"),
        ('cuts="embed | layers.0-3"', r"no operator .* 'layers.0-3' of 'cuts' \(a range is written 'layers 0"),
        ('cuts="embed + layers 0-2 | layers 2-3 + head"', "'layers.2' is in stages 1 and 2 of 'cuts': leave it in one"),
        ('cuts="layers 2-3 + head | embed + layers 0-1"', "'cuts' is cyclic: layers.2 in stage 1 reads .* of stage 2"),
        ('cuts="embed | layers 0-3 | head",devices=["memory=1k"]', "stage 1 of 'cuts' needs memory="),
    ],
)  # fmt: skip
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises((PassError, OptionError), match=message):
        cut(captured(), options)


def test_stages_are_cut_once() -> None:
    found, _ = cut(captured(), "stages=2")
    with pytest.raises(PassError, match="the program has stages: stage1, stage2"):
        Pipeline.parse("partition").run(found)


def test_the_least_memory_that_is_named_suffices() -> None:
    with pytest.raises(PassError) as error:
        cut(captured(), 'stages=3,devices=["memory=1k"]')
    (least,) = [word for word in str(error.value).split() if word.startswith("memory=") and word != "memory=1k"][:1]
    cut(captured(), f'stages=3,devices=["{least}"]')
