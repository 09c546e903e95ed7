"""prune's estimates, rankings, targets, kinds, limits and rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import burnish
from burnish import Context, PassError, Pipeline, Program
from burnish.compiler.context import Target
from burnish.compiler.pipeline import run_pipeline
from burnish.passes.pruning.groups import Group, groups_of
from burnish.passes.pruning.importance import importance_of
from burnish.passes.pruning.propagate import propagate


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.second, self.third = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 4)
        nn.init.uniform_(self.norm.weight, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        out: torch.Tensor = self.head(torch.relu(self.third(x)).mean((2, 3)))
        return out


class _Encoder(nn.Module):
    """Two pre-norm layers over features that a head reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(10, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.layers(self.embed(x)).mean(1))
        return out


_PICTURES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
_TOKENS = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(2))
_FUSED = "canonicalize,fold-constants,fuse,dce"


def _pruned(
    model: nn.Module, x: torch.Tensor, options: str, before: str = "canonicalize", **context: Any
) -> tuple[Program, Context]:
    known = Context(progress=False, **context)
    return run_pipeline(Pipeline.parse(f"{before},prune{{{options}}}"), burnish.capture(model.eval(), (x,)), known)[
        0
    ], known


def _widths(program: Program) -> tuple[int, ...]:
    return tuple(program.constants[f"{name}.weight"].shape[0] for name in ("first", "second", "third"))


def _group(model: nn.Module, name: str) -> tuple[Program, Group]:
    program = Pipeline.parse("canonicalize").run(burnish.capture(model.eval(), (_PICTURES,)), Context())
    groups = groups_of(program, propagate(program))
    return program, next(each for each in groups if any(member.constant == name for member in each.members))


def test_what_the_estimates_are() -> None:
    model = _Network()
    program, group = _group(model, "first.weight")
    out, into = (value.detach().double() for value in (model.first.weight, model.second.weight))

    def expected(power: int) -> np.ndarray[Any, Any]:
        found = out.abs().pow(power).sum((1, 2, 3)) + into.abs().pow(power).sum((0, 2, 3))
        return found.numpy()

    def scores(kind: Any) -> np.ndarray[Any, Any]:
        return importance_of(group, program.constants, kind, 0)

    for kind, wanted in (
        ("l1", expected(1)),
        ("l2", np.sqrt(expected(2))),
        ("batch-norm", model.norm.weight.detach().double().abs().numpy()),
    ):
        assert np.allclose(scores(kind), wanted / wanted.mean()), kind
    squares = expected(2)
    lamp = [square / squares[squares >= square].sum() for square in squares]
    assert np.allclose(scores("lamp"), lamp)
    rows = [torch.cdist(each, each).sum(1) for each in (out.flatten(1), into.movedim(1, 0).flatten(1))]
    distances = (rows[0] + rows[1]).numpy()
    assert np.allclose(scores("fpgm"), distances / distances.mean(), rtol=1e-4)
    assert not np.allclose(scores("random"), importance_of(group, program.constants, "random", 1))


def test_distances_of_heads_are_those_of_whole_heads() -> None:
    program = Pipeline.parse(_FUSED).run(burnish.capture(_Encoder().eval(), (_TOKENS,)), Context())
    groups = [each for each in groups_of(program, propagate(program)) if each.kind == "heads"]
    assert [len(each.classes) for each in groups] == [4, 4]
    assert all(each.width == 8 for each in groups)
    for group in groups:
        total = np.zeros(4)
        for member in (each for each in group.members if each.is_weight):
            value = program.constants[member.constant].double().movedim(member.dim, 0)
            vectors = torch.stack([value[torch.from_numpy(member.place == head)].flatten() for head in range(4)])
            total += torch.cdist(vectors, vectors).sum(1).numpy()
        scores = importance_of(group, program.constants, "fpgm", 0)
        assert np.allclose(scores, total / total.mean(), rtol=1e-4)


def test_taylor_finds_what_the_data_do_not_use() -> None:
    model = _Network()
    with torch.no_grad():
        # Large weights that always meet a negative sum: no data gets through them, and no norm of weights sees it.
        dead = [2, 3, 11, 30]
        model.norm.bias[dead] = -1e3
        model.first.weight[dead] *= 10
    labels = [(_PICTURES, torch.tensor([0, 1, 2, 3]))]
    for data in (labels, [_PICTURES]):
        program, _ = _pruned(model, _PICTURES, "ratio=0.125,importance=taylor,keep=[third]", calibration=data)
        assert torch.equal(program.constants["norm.bias"], model.norm.bias[[i for i in range(32) if i not in dead]])
    with torch.no_grad():
        kept, _ = _pruned(
            model, _PICTURES, "ratio=0.125,importance=taylor,kinds=[channels],keep=[third]", calibration=labels
        )
        random, _ = _pruned(model, _PICTURES, "ratio=0.125,importance=random,keep=[third]")
        error = [float((each(_PICTURES) - model(_PICTURES)).square().mean()) for each in (kept, random)]
    assert error[0] < error[1]


def test_taylor_is_the_change_of_the_loss_to_first_order() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.first, self.second = nn.Linear(5, 6, bias=False), nn.Linear(6, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]

    model, x, labels = Layers(), torch.randn(16, 5), torch.arange(16) % 3
    loss = nn.functional.cross_entropy(model(x), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    first, second = model.first.weight, model.second.weight
    assert first.grad is not None and second.grad is not None
    change = ((first * first.grad).sum(1) + (second * second.grad).sum(0)).detach()
    least = int(change.square().argmin())
    program, _ = _pruned(model, x, "ratio=0.17,importance=taylor", calibration=[(x, labels)])
    assert torch.equal(program.constants["first.weight"], first[[i for i in range(6) if i != least]])


def test_isomorphic_groups_compete_with_their_like_alone() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16, bias=False) for _ in range(4)]
    model = nn.Sequential(*layers[:2], nn.BatchNorm1d(16), *layers[2:], nn.Linear(16, 2))
    with torch.no_grad():
        for layer in layers[1:]:
            layer.weight[8:] *= 1e-3

    def removed(ranking: str) -> list[int]:
        program, _ = _pruned(model, torch.randn(2, 16), f"ratio=0.25,ranking={ranking}")
        return [16 - program.constants[f"{index}.weight"].shape[0] for index in (0, 1, 3, 4)]

    # The layer before a norm is cut in another way than the others: a quarter of it goes, and of the others together.
    assert removed("local") == [4, 4, 4, 4]
    together, among = removed("global"), removed("isomorphic")
    assert sum(together) == sum(among) == 16
    assert among[1] == 4
    assert together[1] != 4 or together != among


@pytest.mark.parametrize("ranking", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("measure", ["flops", "params"])
@pytest.mark.parametrize("part", [0.7, 0.3])
def test_targets_are_reached(measure: str, part: float, ranking: str) -> None:
    before = Pipeline.parse("canonicalize").run(burnish.capture(_Network().eval(), (_PICTURES,)), Context())
    after, context = _pruned(_Network(), _PICTURES, f"{measure}={part},ranking={ranking},importance=l1")
    if measure == "params":
        found = after.parameter_count() / before.parameter_count()
    else:
        found = after.cost().at_samples().flops / before.cost().at_samples().flops
    assert found == pytest.approx(part, abs=0.05)
    assert any(f"{found:.1%} of the {measure}" in note for note in context.notes)


def test_a_latency_is_measured_not_guessed() -> None:
    seen = []

    def measure(programs: list[Program]) -> list[float]:
        """A backend on which only the third layer takes time."""
        seen.append(programs[0].constants["third.weight"].shape[0])
        return [1.0 + program.constants["third.weight"].shape[0] for program in programs]

    program, context = _pruned(_Network(), _PICTURES, "latency=0.5", measure=measure)
    assert program.constants["third.weight"].shape[0] == pytest.approx(32, abs=2)
    assert set(seen) == {64}
    assert any("of the latency" in note for note in context.notes)


@pytest.mark.slow
def test_a_latency_is_that_of_the_backend() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Linear(512, 512), nn.ReLU()) for _ in range(6)], nn.Linear(512, 8)).eval()
    compiled = burnish.compile(model, "default,prune{latency=0.6}", inputs=(torch.randn(64, 512),), backend="onnx")
    assert any("of the latency" in note for note in compiled.report.notes)
    # Work goes with the square of the widths: far from both ends says that the search followed the times.
    flops = compiled.program.cost().at_samples().flops / (2 * 64 * (6 * 512 * 512 + 512 * 8))
    assert 0.1 < flops < 0.95


def test_what_cannot_be_reached_says_what_can() -> None:
    with pytest.raises(
        PassError, match=r"flops=0.01 cannot be reached: .* still has 0\.\d\d of its flops; kinds, keep"
    ):
        _pruned(_Network(), _PICTURES, "flops=0.01,keep=[third]")
    with pytest.raises(PassError, match=r"flops=0.5 cannot be reached: nothing can go"):
        _pruned(_Network(), _PICTURES, "flops=0.5,kinds=[heads]")
    program = Pipeline.parse("canonicalize").run(burnish.capture(_Network().eval(), (_PICTURES,)), Context())
    program.samples = {}
    with pytest.raises(PassError, match="a target of flops needs sample inputs"):
        Pipeline.parse("prune{flops=0.5}").run(program, Context())
    with pytest.raises(PassError, match="runs without a backend, so nothing can be measured"):
        _pruned(_Network(), _PICTURES, "latency=0.5")


def test_kinds() -> None:
    def sizes(kinds: str) -> tuple[int, ...]:
        program, _ = _pruned(_Encoder(), _TOKENS, f"ratio=0.5,kinds=[{kinds}]", _FUSED)
        names = ("layers.layers.0.linear1.weight", "layers.layers.0.self_attn.out_proj.weight", "embed.weight")
        out, of_heads, features = (program.constants[name] for name in names)
        return out.shape[0], of_heads.shape[1], features.shape[0]

    assert sizes("neurons") == (32, 32, 32)
    assert sizes("heads") == (64, 16, 32)
    assert sizes("features") == (64, 32, 16)
    assert sizes("heads,neurons,features") == (32, 16, 16)
    program, context = _pruned(_Network(), _PICTURES, "kinds=[heads]")
    assert "prune found nothing to remove" in context.notes
    assert _widths(program) == (32, 64, 64)


@pytest.mark.parametrize("before", ["canonicalize", _FUSED])
def test_norms_of_fewer_features(before: str) -> None:
    model = _Encoder()
    program, _ = _pruned(model, _TOKENS, "ratio=0.5,kinds=[features]", before)
    stays = [
        index for index, row in enumerate(model.embed.weight)
        if any(torch.equal(row, other) for other in program.constants["embed.weight"])
    ]  # fmt: skip
    assert len(stays) == 16
    # The smaller network, built by hand.
    small = _Encoder()
    with torch.no_grad():
        for module in small.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight, module.bias = nn.Parameter(module.weight[stays]), nn.Parameter(module.bias[stays])
                module.normalized_shape = (16,)
        x = small.embed(_TOKENS)[..., stays]
        for layer in small.layers.layers:
            attention = layer.self_attn
            weight, bias = attention.in_proj_weight[:, stays], attention.in_proj_bias
            q, k, v = nn.functional.linear(layer.norm1(x), weight, bias).chunk(3, -1)
            q, k, v = (each.unflatten(-1, (4, 8)).transpose(1, 2) for each in (q, k, v))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
            x = x + attention.out_proj(mixed)[..., stays]
            inner = torch.relu(nn.functional.linear(layer.norm2(x), layer.linear1.weight[:, stays], layer.linear1.bias))
            x = x + layer.linear2(inner)[..., stays]
        expected = nn.functional.linear(small.layers.norm(x).mean(1), small.head.weight[:, stays], small.head.bias)
        assert torch.allclose(program(_TOKENS), expected, atol=1e-5)


def test_limits_and_patterns_of_modules() -> None:
    # What a layer reads is its own too.
    assert _widths(_pruned(_Network(), _PICTURES, 'ratio=0.5,limits=["second=0.25"]')[0]) == (24, 48, 32)
    assert _widths(_pruned(_Network(), _PICTURES, 'ratio=0.5,limits=["third.weight=0"]')[0]) == (16, 64, 64)
    assert _widths(_pruned(_Network(), _PICTURES, "ratio=0.5,keep=[nor?]")[0]) == (32, 32, 32)
    program, _ = _pruned(_Network(), _PICTURES, 'ratio=0.8,ranking=global,limits=["*=0.5"]')
    assert _widths(program)[0] >= 16 and _widths(program)[1] >= 32 and _widths(program)[2] >= 32
    for text in ("second", "second=2", "second=x", "=-1"):
        with pytest.raises(burnish.OptionError, match="option 'limits' takes patterns with a part from 0 to 1"):
            _pruned(_Network(), _PICTURES, f'limits=["{text}"]')
    with pytest.raises(PassError, match=r"nothing to prune matches 'fourth\.\*'"):
        _pruned(_Network(), _PICTURES, 'limits=["fourth.*=0.5"]')


def test_rounding_is_the_targets_where_nothing_is_asked_for() -> None:
    def widths(options: str, alignment: int) -> tuple[int, ...]:
        target = Target(alignment=alignment)
        return _widths(_pruned(_Network(), _PICTURES, options, target=target)[0])

    assert widths("ratio=0.4", 1) == (20, 39, 39)
    # Of two groups that 39 should be left of one is cut further.
    assert widths("ratio=0.4", 16) == (16, 32, 48)
    # A number that is asked for holds everywhere, and never takes more than the ratio.
    assert widths("ratio=0.4,round_to=16", 1) == (32, 48, 48)
    assert widths("ratio=0.4,round_to=1", 16) == (20, 39, 39)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=0.5,flops=0.5", "give one of ratio, flops, params and latency"),
        ("params=0.5,latency=0.5", "give one of ratio, flops, params and latency"),
        ("flops=0", "option 'flops' must be a part above 0, to 1, of what there is, but is 0"),
        ("latency=1.5", "option 'latency' must be a part above 0"),
        ("kinds=[layers]", "option 'kinds' must be"),
        ("importance=taylor", "pass 'prune' needs calibration data"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises((PassError, burnish.OptionError), match=message):
        _pruned(_Network(), _PICTURES, options)


def test_scales_of_norms_that_are_folded() -> None:
    with pytest.raises(PassError, match="'batch-norm' needs batch norms, and what can go has none"):
        _pruned(_Network(), _PICTURES, "importance=batch-norm", "canonicalize,fold-batch-norm")


def test_outputs_without_gradients() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x).argmax(1)  # type: ignore[no-any-return]

    x = torch.randn(2, 4)
    with pytest.raises(PassError, match="taylor needs an output of floats that depends on the weights"):
        _pruned(Chosen(), x, "importance=taylor", calibration=[x])


def test_a_target_is_an_upper_bound() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()) for _ in range(6)]
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *layers, nn.Conv2d(32, 4, 1))
    program = burnish.capture(model.eval(), (torch.randn(2, 3, 16, 16),))
    for goal in ("flops=0.8", "flops=0.5", "params=0.9", "params=0.58"):
        smaller = Pipeline.parse(f"canonicalize,prune{{{goal}}}").run(
            program, Context(target=Target(alignment=16), progress=False)
        )
        measure, _, part = goal.partition("=")
        if measure == "flops":
            left = smaller.cost().at_samples().flops / program.cost().at_samples().flops
        else:
            left = smaller.parameter_count() / program.parameter_count()
        # All groups have one size: if each were rounded alike there would be four widths to choose from.
        assert float(part) - 0.09 < left <= float(part) * 1.005


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0, -1]), "taylor: class -1 of 4"),
        (torch.tensor([0, 9]), "taylor: class 9 of 4"),
        (torch.full((2,), -100), "taylor: no sample of the batch has a class"),
    ],
)
def test_labels_that_taylor_cannot_use(target: torch.Tensor, message: str) -> None:
    data = [(torch.randn(2, 3, 8, 8), target)]
    program = burnish.capture(_Network().eval(), (_PICTURES,))
    with pytest.raises(PassError, match=message):
        Pipeline.parse("canonicalize,prune{importance=taylor}").run(program, Context(calibration=data))


def test_weights_that_cannot_be_ranked() -> None:
    model = _Network()
    with torch.no_grad():
        model.second.weight[3, 0] = torch.nan
    with pytest.raises(PassError, match=r"constant 'second\.weight' holds NaN or infinity"):
        _pruned(model, _PICTURES, "ratio=0.5")
    with pytest.raises(burnish.OptionError, match="option 'kinds' is empty"):
        _pruned(_Network(), _PICTURES, "kinds=[]")


def test_patterns_of_masks_do_not_survive() -> None:
    program = burnish.capture(_Network().eval(), (_PICTURES,))
    context = Context(progress=False)
    Pipeline.parse('canonicalize,sparsify{pattern="2:4"},prune').run(program, context)
    assert any("put sparsify behind prune" in note for note in context.notes)
