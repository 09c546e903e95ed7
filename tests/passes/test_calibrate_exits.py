"""calibrate-exits: the bound holds, settings are good ones, and heads learn from all samples."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import burnish
from burnish import Context, PassError, Pipeline, Program
from burnish.passes.exits import CalibrateExits
from burnish.passes.exits.choice import choose
from burnish.passes.exits.risk import holds_up_to, p_value
from burnish.passes.exits.straight import straightened
from burnish.passes.exits.thresholds import Answers, Setting, settings
from burnish.passes.recovery import Recover
from tests.passes.test_exits import Pictures

_CLASSES = 5


def _data(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose mean brightness in a corner is their class, some of them noisy."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, _CLASSES, (count,), generator=generator)
    noise = torch.rand(count, 1, 1, 1, generator=generator) * 3
    pictures = noise * torch.randn(count, 3, 12, 12, generator=generator)
    pictures[:, 0] += labels[:, None, None] - 2.0
    return pictures, labels


@pytest.mark.parametrize(("risk", "bound"), [(0.01, 0.01), (0.05, 0.05), (0.02, 0.02)])
@pytest.mark.parametrize("signed", [False, True])
def test_a_risk_at_the_bound_is_seldom_accepted(risk: float, bound: float, signed: bool) -> None:
    generator = np.random.default_rng(0)
    accepted = 0
    for _ in range(1000):
        losses = (generator.random(1000) < (risk + 0.02 if signed else risk)).astype(float)
        if signed:
            losses -= generator.random(1000) < 0.02
        accepted += p_value(losses, bound) <= 0.1
    # 100 are expected at the most; 140 would be four standard errors more.
    assert accepted < 140


def test_a_small_risk_is_accepted() -> None:
    generator = np.random.default_rng(0)
    lost = [(generator.random(5000) < part).astype(float) for part in (0.0, 0.002, 0.03, 0.0)]
    assert holds_up_to(lost, 0.01, 0.05) == 2
    signed = (generator.random(5000) < 0.01).astype(float) - (generator.random(5000) < 0.01)
    assert p_value(signed, 0.01) < 0.05 < p_value(signed[:500], 0.01)
    assert p_value(np.zeros(299), 0.01) <= 0.05 < p_value(np.zeros(298), 0.01), "as the documentation says"


def _answers(generator: np.random.Generator, count: int, exits: int) -> Answers:
    scores = generator.random((exits, count))
    losses = (generator.random((exits, count)) > 0.2 + 0.8 * scores).astype(float)
    costs = np.linspace(0.3, 1.05, exits + 1)
    return Answers(scores, losses, costs)


def test_the_bound_holds_over_random_splits() -> None:
    generator = np.random.default_rng(0)
    whole = _answers(generator, 200_000, 2)
    delta, bound, violated = 0.1, 0.05, 0
    for _ in range(200):
        chosen = generator.choice(whole.scores.shape[1], 1200, replace=False)
        some = whole.part(chosen)
        violated += whole.loss(choose(some, some, bound, delta, seed=0).setting).mean() > bound
    assert violated <= delta * 200


def test_samples_won_by_chance_do_not_come_first() -> None:
    """An exit that wins as many as it loses: it is used, though half the samples say that it wins and half do not."""
    generator = np.random.default_rng(0)
    scores = generator.random((1, 6000))
    differs = generator.random((1, 6000)) > 0.9 + 0.1 * scores
    accuracy = Answers(scores, differs * generator.choice([-1.0, 1.0], (1, 6000)), np.array([0.3, 1.0]))
    agreement = Answers(scores, differs.astype(float), accuracy.costs)
    choice = choose(accuracy, agreement, 0.02, 0.05, seed=0)
    assert choice.held > 3
    assert choice.tested.cost(choice.setting) < 0.6


def test_settings_are_near_the_best() -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        answers = _answers(generator, 50, 2)
        found = settings(answers)
        costs = [answers.cost(each) for each in found]
        assert found[0].limits == (np.inf, np.inf) and costs == sorted(costs, reverse=True)
        limits = [[np.inf, *each, -np.inf] for each in answers.scores]
        every = [Setting(each) for each in itertools.product(*limits)]
        # For a weight of loss against cost nothing is better than one of these, but for where single exits are stuck.
        for weight in (0.5, 2.0, 10.0):
            least = min(answers.cost(each) + weight * answers.loss(each).mean() for each in every)
            ours = min(answers.cost(each) + weight * answers.loss(each).mean() for each in found)
            assert ours <= least + 0.05


def test_scores_that_are_no_numbers_leave_nowhere() -> None:
    answers = Answers(np.array([[0.5, np.nan, 0.9]]), np.zeros((1, 3)), np.array([0.1, 1.0]))
    cheapest = settings(answers)[-1]
    assert answers.leave_by(cheapest).tolist() == [0, 1, 0]


def _trained(rule: str, mode: str, max_drop: float) -> tuple[Program, Context]:
    torch.manual_seed(0)
    pictures, labels = _data(512)
    batches = list(zip(pictures.split(64), labels.split(64), strict=True))
    program = burnish.capture(Pictures().eval(), (pictures[:8],))
    learning = {"loss": "cross-entropy", "distill": None, "epochs": 4, "learning_rate": 0.01}
    passes = Pipeline(["canonicalize", Recover(data=batches, **learning)])
    whole = passes.run(program, Context(progress=False))
    exits = Pipeline(
        [
            f"insert-exits{{exits=2,index=true,rule={rule},mode={mode}}}",
            Recover(data=batches, only=("exit*",), **learning),
            CalibrateExits(max_drop=max_drop, delta=0.1),
        ]
    )
    held_out = _data(2000, seed=1)
    context = Context(calibration=list(zip(*(each.split(250) for each in held_out), strict=True)), progress=False)
    found = exits.run(whole, context)
    for name, value in whole.constants.items():
        assert torch.equal(found.constants[name], value), "only heads change"
    return found, context


@pytest.mark.parametrize(
    ("rule", "mode", "max_drop"),
    [("max-probability", "per-sample", 0.05), ("patience", "per-sample", 0.2), ("margin", "whole-batch", 0.05)],
)
def test_trained_exits(rule: str, mode: str, max_drop: float) -> None:
    program, context = _trained(rule, mode, max_drop)
    pictures, labels = _data(3000, seed=2)
    straight = straightened(program)
    assert straight is not None
    own = straight.program(pictures)[0].argmax(-1)
    if mode == "per-sample":
        logits, exits = program(pictures)
    else:
        rows = [program(each[None]) for each in pictures[:300]]
        logits, exits = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
        own, labels = own[:300], labels[:300]
    lost = float((own == labels).float().mean() - (logits.argmax(-1) == labels).float().mean())
    assert lost < max_drop + 3 * 0.5 / len(labels) ** 0.5, "the bound, and three standard errors at the most"
    assert (exits < 2).float().mean() > 0.1, "some leave early"
    assert not program.warnings
    assert any("of accuracy is lost, with confidence 90%" in note for note in context.notes)


def test_without_classes_agreement_counts(tmp_path: Path) -> None:
    pictures, _ = _data(600)
    program = burnish.capture(Pictures().eval(), (pictures[:8],))
    for name in ("curve.json", "curve.svg", "again.svg"):
        context = Context(calibration=pictures.split(100), progress=False)
        Pipeline.parse(f'canonicalize,insert-exits,calibrate-exits{{max_drop=0.2,curve="{tmp_path}/{name}"}}').run(
            program, context
        )
        assert any("of agreement is lost" in note for note in context.notes), name
    points = json.loads((tmp_path / "curve.json").read_text())
    assert points[0]["cost"] >= 1 and points[0]["lost agreement"] == 0 and points[0]["holds"]
    assert (tmp_path / "curve.svg").read_text().lstrip().startswith("<?xml")
    assert (tmp_path / "curve.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()


@pytest.mark.parametrize(
    ("passes", "data", "message"),
    [
        ("calibrate-exits", "pairs", "the program has no exits: put insert-exits before it"),
        ("insert-exits,calibrate-exits{max_drop=0}", "pairs", "option 'max_drop' must be between 0 and 1, but is 0"),
        ("insert-exits,calibrate-exits{delta=1.5}", "pairs", "option 'delta' must be between 0 and 1, but is 1.5"),
        ("insert-exits,calibrate-exits{curve=a.png}", "pairs", r"option 'curve' must be a \.json or \.svg"),
        ("insert-exits,calibrate-exits", "none", "needs calibration data"),
        ("insert-exits,calibrate-exits", "one", "needs some hundred samples, but calibration= has 1"),
        ("insert-exits,calibrate-exits{metric=accuracy}", "inputs", "metric=accuracy needs calibration= of pairs"),
        ("insert-exits,calibrate-exits", "beyond", r"class \d+ of \d+: they are numbered from 0"),
        ("insert-exits,calibrate-exits", "floats", "metric=accuracy needs calibration= of pairs"),
    ],
)
def test_bad_input(passes: str, data: str, message: str) -> None:
    pictures, labels = _data(16)
    calibration = {
        "pairs": [(pictures, labels)],
        "none": None,
        "one": [(pictures[:1], labels[:1])],
        "inputs": [pictures],
        "floats": [(pictures, labels.float())],
        "beyond": [(pictures, labels + 10)],
    }[data]
    program = burnish.capture(Pictures().eval(), (pictures,))
    with pytest.raises((PassError, burnish.OptionError), match=message):
        Pipeline.parse(f"canonicalize,{passes}").run(program, Context(calibration=calibration, progress=False))
