"""insert-exits: what leaves, what stays, and that every sample gets what it would get alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import burnish
from burnish import Context, OptionError, PassError, Pipeline, Program
from burnish.compiler.pipeline import run_pipeline
from burnish.passes.exits import InsertExits
from burnish.passes.exits.straight import straightened

pytestmark = pytest.mark.filterwarnings("ignore:the thresholds of exits are not calibrated")

_PICTURES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Pictures(nn.Module):
    """Three stages; batch norms stay where nobody folds them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in ((3, 8), (8, 16), (16, 16))
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


class Text(nn.Module):
    """Encoder layers with a mask of padding, which every layer reads; the classifier reads the first token."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True) for _ in range(layers))
        self.pool, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        hidden = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(mask == 0, -1e4)[:, None, None, :]
        for layer in self.layers:
            q, k, v = layer.self_attn.in_proj_weight.chunk(3)
            heads = [(x @ each.T).unflatten(-1, (4, 4)).transpose(1, 2) for each in (q, k, v)]
            found = nn.functional.scaled_dot_product_attention(
                *heads, attn_mask=hidden.expand(-1, 4, mask.shape[1], -1)
            )
            x = layer.norm1(x + found.transpose(1, 2).flatten(2))
            x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
        return self.head(torch.tanh(self.pool(x[:, 0])))


class Views(nn.Module):
    """Views that leave one size open: with no samples it could be any."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, tokens, _ = x.shape
        x = self.first(x).relu()
        heads = self.second(x).view(samples, tokens, -1, 4).transpose(1, 2).softmax(-1)
        joined = x + heads.transpose(1, 2).reshape(samples, -1, 16)
        return self.head(joined.relu().mean(1))


def _pictures() -> Program:
    return burnish.capture(Pictures().eval(), (_PICTURES,))


def _text() -> Program:
    return burnish.capture(Text().eval(), _sentences(4))


def _sentences(count: int, tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    mask = (torch.arange(tokens) < torch.randint(2, tokens + 1, (count, 1), generator=generator)).long()
    return torch.randint(0, 50, (count, tokens), generator=generator), mask


def _with(program: Program, options: str, before: str = "canonicalize,fold-batch-norm,fold-constants,dce") -> Program:
    context = Context(progress=False)
    found, _ = run_pipeline(Pipeline.parse(f"{before},insert-exits{{{options}}}"), program, context, verify=3)
    assert ["not calibrated" in each for each in found.warnings] == [True]
    return found


def _middle(program: Program, *inputs: torch.Tensor) -> float:
    """Return a threshold that half of the samples pass at the first exit, in the widest gap near there."""
    straight = straightened(program)
    assert straight is not None
    scores = straight.program(*inputs)[1].sort().values
    middle = scores[len(scores) // 4 : 3 * len(scores) // 4 + 1]
    widest = int(middle.diff().argmax())
    return float(middle[widest] + middle[widest + 1]) / 2


def _alone(program: Program, *inputs: torch.Tensor) -> torch.Tensor:
    rows = [program(*(each[index : index + 1] for each in inputs)) for index in range(len(inputs[0]))]
    return torch.cat([row[0] if isinstance(row, tuple) else row for row in rows])


@pytest.mark.parametrize("rule", ["max-probability", "margin", "entropy", "patience"])
@pytest.mark.parametrize("kind", ["pictures", "text"])
def test_every_sample_gets_what_it_gets_alone(kind: str, rule: str) -> None:
    program, options = (_pictures(), "exits=2") if kind == "pictures" else (_text(), "layers=[0,1],head=copy")
    generator = torch.Generator().manual_seed(1)
    batch = (torch.randn(64, 3, 12, 12, generator=generator),) if kind == "pictures" else _sentences(64)
    options += f",rule={rule},index=true"
    thresholds = [1.0] if rule == "patience" else [0.0, _middle(_with(program, options), *batch), 1.0]
    for threshold in thresholds:
        left = _with(program, f"{options},thresholds=[{threshold}]")
        for count in (1, 2, 7, 64):
            part = tuple(each[:count] for each in batch)
            logits, exits = left(*part)
            torch.testing.assert_close(logits, _alone(left, *part), rtol=1e-4, atol=1e-5)
        if threshold == 1.0 and rule != "patience":
            assert exits.tolist() == [2] * 64
            torch.testing.assert_close(logits, program(*part), rtol=1e-4, atol=1e-5)
        elif threshold == 0.0:
            assert exits.tolist() == [0] * 64
        elif rule != "patience":
            assert 0 < (exits == 0).sum() < 64


@pytest.mark.parametrize("mode", ["per-sample", "whole-batch"])
@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
def test_backends_agree(backend: str, mode: str) -> None:
    program = _pictures()
    threshold = _middle(_with(program, "exits=2"), _PICTURES)
    left = _with(program, f"exits=2,index=true,mode={mode},thresholds=[{threshold}]")
    assert Program.parse(left.print(), left.constants).print() == left.print()
    compiled = burnish.compile(left.copy(), backend=backend, progress=False)
    plain = burnish.compile(left.copy(), [], backend=backend, progress=False)
    for count in (1, 2, 7, 8):
        logits, exits = left(_PICTURES[:count])
        for each in (compiled, plain):
            found, where = each(_PICTURES[:count])
            torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)
            assert where.tolist() == exits.tolist()


def test_a_batch_leaves_together_or_not() -> None:
    program = _pictures()
    threshold = _middle(_with(program, "exits=1"), _PICTURES)
    left = _with(program, f"exits=1,index=true,mode=whole-batch,thresholds=[{threshold}]")
    exits = [int(left(each[None])[1]) for each in _PICTURES]
    assert set(exits) == {0, 1}
    assert left(_PICTURES)[1].tolist() == [1] * 8
    easy = _PICTURES[[index for index, each in enumerate(exits) if each == 0]]
    assert set(left(easy)[1].tolist()) == {0}
    torch.testing.assert_close(left(_PICTURES)[0], program(_PICTURES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["max-probability", "margin", "entropy"])
def test_what_is_no_number_stays(rule: str) -> None:
    program = _pictures()
    left = _with(program, f"exits=1,index=true,rule={rule},thresholds=[0]")
    left.constants["exit1.bias"] = torch.full_like(left.constants["exit1.bias"], torch.nan)
    logits, exits = left(_PICTURES)
    assert exits.tolist() == [1] * 8 and bool(logits.isfinite().all())


@pytest.mark.parametrize("mode", ["per-sample", "whole-batch"])
def test_nobody_leaves_a_straight_program(mode: str) -> None:
    program = _pictures()
    assert straightened(program) is None
    left = _with(program, f"exits=2,mode={mode},thresholds=[0]")
    left = Pipeline.parse("canonicalize,cse,fuse,dce").run(left, Context(progress=False))
    straight = straightened(left)
    assert straight is not None and [head.threshold for head in straight.heads] == [
        "exit1.threshold",
        "exit2.threshold",
    ]
    own, *_ = straight.program(_PICTURES)
    torch.testing.assert_close(own, program(_PICTURES), rtol=1e-4, atol=1e-5)


def test_modules_as_heads() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.BatchNorm2d(16), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.norm(x).amax((2, 3)))

    head = Head().eval()
    passes = Pipeline(["canonicalize", InsertExits(after=("stages.1",), heads=(head,), thresholds=(0.0,))])
    left = passes.run(_pictures(), Context(progress=False))
    with torch.no_grad():
        stages = Pictures().eval().stages
        torch.testing.assert_close(left(_PICTURES), head(stages[1](stages[0](_PICTURES))), rtol=1e-4, atol=1e-5)
    with pytest.raises(PassError, match=r"the head of exit1 gives torch\.float32\[s\d+, 5, 3, 3\], but the model"):
        Pipeline([InsertExits(heads=(nn.Conv2d(16, 5, 1, stride=1),), after=("stages.1",))]).run(_pictures())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (nn.Linear(16, 5), "option 'heads' must be a tuple of modules, one for every exit"),
        ((torch.relu,), "option 'heads' must be modules, but number 0 is"),
        ((nn.Conv2d(7, 5, 1),), r"the module given for exit1: Conv2d does not run on these inputs, \(f32\[2, 16, "),
    ],
)
def test_what_is_no_head(heads: Any, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((PassError, OptionError), match=message):
        Pipeline([InsertExits(heads=heads, after=("stages.1",))]).run(_pictures())
    assert "Traceback" not in capfd.readouterr().err


def test_the_notes_say_where_exits_stand() -> None:
    context = Context(progress=False)
    Pipeline.parse("canonicalize,insert-exits{after=[stages.0,stages.1]}").run(_pictures(), context)
    assert [note for note in context.notes if note.startswith("insert-exits: exit1 behind stages.0")]
    assert "exit2 behind stages.1" in context.notes[-1]


@pytest.mark.parametrize("after", ["prune{ratio=0.5}", "quantize", "prune{ratio=0.25},quantize"])
@pytest.mark.parametrize("first", [True, False])
def test_with_other_passes(after: str, first: bool) -> None:
    program, calibration = _pictures(), [_PICTURES]
    exits = "insert-exits{exits=2,index=true,thresholds=[0.21]}"
    text = (
        f"canonicalize,fold-batch-norm,dce,{exits},{after}"
        if first
        else f"canonicalize,fold-batch-norm,{after},{exits}"
    )
    found = Pipeline.parse(text).run(program, Context(calibration=calibration, progress=False))
    assert straightened(found) is not None
    compiled = burnish.compile(found.copy(), backend="onnx", progress=False)
    for count in (1, 8):
        logits, exits_of = found(_PICTURES[:count])
        actual, where = compiled(_PICTURES[:count])
        assert where.tolist() == exits_of.tolist()
        torch.testing.assert_close(actual, logits, rtol=0.05, atol=0.02)


class _Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("exits=0", "option 'exits' must be 1 or more, but is 0"),
        ("exits=9", "9 exits are wanted, but there are"),
        ("exits=1,layers=[1]", "give one of exits, after and layers"),
        ("thresholds=[1.5]", "option 'thresholds' must be from 0 to 1 for max-probability, but has 1.5"),
        ("rule=patience,exits=2,thresholds=3", "3 exits in a row cannot agree where there are 2"),
        ("rule=patience,thresholds=[0.5]", "patience is a number of exits, 1 or more, not 0.5"),
        ("exits=2,thresholds=[0.5,0.5,0.5]", "option 'thresholds' has 3 values for 2 exits"),
        ("after=[nowhere]", "no cut point matches 'nowhere': there are stages"),
        ("layers=[7]", "there is no cut point in layer 7: there are stages.0, stages.1"),
        ("after=[stages.0],head=copy", "no cut point near it has the"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises((PassError, burnish.OptionError), match=message):
        Pipeline.parse(f"insert-exits{{{options}}}").run(_pictures())


@pytest.mark.parametrize(
    ("model", "shapes", "message"),
    [
        (lambda s, x: s.last(s.first(x).relu()).mean(), None, r"must be logits, floats \[samples, classes\]"),
        (lambda s, x: s.last(s.first(x).relu() - s.first(x).mean(0)), None, "depends on the others of its batch"),
        (lambda s, x: (s.last(s.first(x)), s.first(x)), None, "keep one with select-outputs"),
        (lambda s, x: s.last(s.first(x).relu()), {"x": {}}, "capture the model with a dynamic number of samples"),
        (lambda s, x: s.last(x), None, "there is no cut point"),
    ],
)
def test_models_that_can_have_none(model: Any, shapes: Any, message: str) -> None:
    torch.manual_seed(0)
    program = burnish.capture(_Function(model).eval(), (torch.randn(4, 8),), shapes)
    with pytest.raises(PassError, match=message):
        Pipeline.parse("canonicalize,insert-exits").run(program)


def test_a_sample_of_one_shows_what_mixes_samples() -> None:
    torch.manual_seed(0)
    model = _Function(lambda s, x: s.last(s.first(x).relu() - s.first(x).mean(0)))
    program = burnish.capture(model.eval(), (torch.randn(1, 8),), {"x": {0: torch.export.Dim("batch")}})
    with pytest.raises(PassError, match="depends on the others of its batch"):
        Pipeline.parse("canonicalize,insert-exits").run(program)


@pytest.mark.parametrize("mode", ["per-sample", "whole-batch"])
def test_modules_with_numbers_for_names(mode: str) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    program = burnish.capture(nn.Sequential(*layers, nn.Linear(8, 5)).eval(), (_PICTURES,))
    left = _with(program, f"exits=1,mode={mode},thresholds=[1]")
    torch.testing.assert_close(left(_PICTURES), program(_PICTURES), rtol=1e-4, atol=1e-5)
    assert Program.parse(left.print(), left.constants).print() == left.print()


class _Normed(nn.Module):
    """Two convolutions, a norm behind each."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)
        self.norm1, self.norm2, self.head = norm(8), norm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.first(x)).relu()
        return self.head(self.norm2(self.second(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
@pytest.mark.parametrize("before", ["default", "canonicalize"])
@pytest.mark.parametrize("norm", [lambda c: nn.GroupNorm(2, c), lambda c: nn.GroupNorm(1, c), nn.BatchNorm2d])
def test_norms_of_no_samples(norm: Any, before: str, backend: str) -> None:
    for threshold in (0, 1):
        left = f"{before},insert-exits{{exits=1,thresholds=[{threshold}]}}"
        compiled = burnish.compile(
            _Normed(norm).eval(), left, inputs=(_PICTURES,), backend=backend, progress=False
        )  # fmt: skip
        for count in (1, 8):
            torch.testing.assert_close(
                compiled(_PICTURES[:count]), compiled.program(_PICTURES[:count]), rtol=1e-4, atol=1e-5
            )


def test_an_instance_norm_is_not_of_no_samples() -> None:
    program = burnish.capture(_Normed(lambda c: nn.InstanceNorm2d(c, affine=True)).eval(), (_PICTURES,))
    with pytest.raises(PassError, match=r"PyTorch has no aten\.instance_norm of no samples; a group norm"):
        Pipeline.parse("canonicalize,insert-exits").run(program)


def test_exits_are_inserted_once() -> None:
    with pytest.raises(PassError, match="the program has exits: give all of them to one insert-exits"):
        Pipeline.parse("insert-exits").run(_with(_pictures(), "exits=1"))


def test_uncalibrated_use_is_warned_of(tmp_path: Path) -> None:
    _with(_pictures(), "exits=1").save(tmp_path / "exits.burnish")
    with pytest.warns(UserWarning, match="not calibrated: nothing holds accuracy") as record:
        compiled = burnish.compile(tmp_path / "exits.burnish", progress=False)
    assert record[0].filename == __file__
    assert "warning: the thresholds of exits are not calibrated" in str(compiled.report)
    lazy = burnish.compile(Pictures().eval(), "canonicalize,insert-exits{exits=1}", progress=False)
    with pytest.warns(UserWarning, match="not calibrated: nothing holds accuracy") as record:
        lazy(_PICTURES)
    assert record[0].filename == __file__


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
@pytest.mark.parametrize("kind", ["pictures", "text", "encoder", "views"])
def test_nobody_is_left(kind: str, backend: str) -> None:
    if kind == "encoder":
        torch.manual_seed(0)
        layers = [nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=first) for first in (False, True)]
        model = nn.Sequential(nn.Linear(8, 16), *layers, nn.Flatten(), nn.Linear(96, 3)).eval()
        inputs: tuple[torch.Tensor, ...] = (torch.randn(4, 6, 8),)
        program = burnish.capture(model, inputs)
    elif kind == "views":
        automatic = torch.export.Dim.AUTO
        inputs = (torch.randn(4, 6, 8),)
        program = burnish.capture(Views().eval(), inputs, ({0: automatic, 1: automatic},))
    else:
        inputs, program = ((_PICTURES,), _pictures()) if kind == "pictures" else (_sentences(4), _text())
    left = _with(program, f"exits={1 if kind == 'views' else 2},index=true,thresholds=[0]", "canonicalize")
    compiled = burnish.compile(left.copy(), backend=backend, progress=False)
    for count in (1, 4):
        part = tuple(each[:count] for each in inputs)
        logits, exits = compiled(*part)
        assert exits.tolist() == [0] * count
        torch.testing.assert_close(logits, left(*part)[0], rtol=1e-4, atol=1e-5)
