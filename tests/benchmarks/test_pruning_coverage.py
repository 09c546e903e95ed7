"""Pruning coverage gives correct rows, and says why it gives others."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from benchmarks import pruning_coverage
from benchmarks.models import Entry, zoo
from benchmarks.pruning_coverage import by_burnish, by_torch_pruning

NEEDS_TORCH_PRUNING = pytest.mark.skipif(not importlib.util.find_spec("torch_pruning"), reason="burnish[bench]")
ZOO = {entry.name: entry for entry in zoo()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("resnet", 0.6), ("vit", 0.25)])
def test_a_network_is_pruned_correctly(name: str, least: float) -> None:
    outcome = by_burnish(ZOO[name], [0.5])[0.5]
    assert (outcome.verdict, outcome.reason) == ("correct", "")
    assert outcome.gone > least
    assert outcome.drift is not None and outcome.drift < 1e-5


def test_a_model_of_which_nothing_can_go() -> None:
    norm = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    for model, verdict in ((nn.Linear(3, 2), "nothing"), (norm, "refused")):
        entry = Entry("small", "mlp", lambda model=model: model, lambda batch: (torch.ones(batch, 3),))  # type: ignore[misc]
        outcome = by_burnish(entry, [0.5])[0.5]
        assert outcome.verdict == verdict
        assert outcome.reason.startswith("prune found nothing to remove; what stays: ")


@pytest.mark.slow
def test_what_is_far_from_the_oracle_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    entry = Entry("mlp", "mlp", lambda: nn.Sequential(*layers), lambda batch: (torch.ones(batch, 3),))
    assert by_burnish(entry, [0.5])[0.5].verdict == "correct"
    monkeypatch.setattr(pruning_coverage, "with_zeros", lambda program, dependencies, kept: program)
    outcome = by_burnish(entry, [0.5])[0.5]
    assert outcome.verdict == "WRONG"
    assert outcome.reason.endswith("from the oracle")


@NEEDS_TORCH_PRUNING
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "rembert"])
def test_torch_pruning_gets_what_it_needs(name: str) -> None:
    outcome = by_torch_pruning(ZOO[name], [0.5])[0.5]
    assert (outcome.verdict, outcome.reason) == ("runs", "")
    assert outcome.gone > 0.3
