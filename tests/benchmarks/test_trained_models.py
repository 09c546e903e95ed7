"""The trained models score what they should, and calibrate on other data than they are scored on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import burnish
from benchmarks.trained import Inputs, Trained, call, digits, efficientnet_lite0, fashion_mnist, fracast, minilm
from benchmarks.trained.fashion import load, weights

NEEDS_FRACAST = pytest.mark.skipif(
    not (importlib.util.find_spec("fracast") and importlib.util.find_spec("statsmodels")), reason="burnish[bench]"
)
NEEDS_FASHION = pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian package dataset-fashion-mnist"
)


def samples(batches: object) -> set[bytes]:
    """Return the samples of `batches`, each without what pads it."""
    return {sample for inputs in batches for sample in _samples(inputs)}


def _samples(inputs: Inputs) -> list[bytes]:
    rows = inputs["input_ids"] if isinstance(inputs, dict) else inputs[0]
    return [np.trim_zeros(row.numpy().reshape(-1), "b").tobytes() for row in rows]


def check_calibration(trained: Trained, count: int) -> None:
    seen = samples(trained.calibration)
    assert len(seen) >= count
    for task in trained.tasks:
        assert not seen & samples(task.batches)


def test_digits_reach_98_percent_and_compile() -> None:
    trained = digits()
    (task,) = trained.tasks
    reference = task.rows(trained.model)
    assert task.score(reference)[0] >= 0.98
    compiled = burnish.compile(trained.model, inputs=trained.inputs, backend="onnx")
    assert task.drop(task.rows(compiled), reference) == (0, 0)
    check_calibration(trained, 290)


def test_digits_are_the_same_again() -> None:
    one, other = digits().model.state_dict(), digits().model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_weights_fit_the_resnet_and_two_megabytes() -> None:
    for seed in (0, 1):
        assert weights(seed).stat().st_size < 2e6
        assert not load(seed).training


@NEEDS_FASHION
@pytest.mark.slow
def test_fashion_mnist_reaches_92_percent() -> None:
    trained = fashion_mnist()
    (task,) = trained.tasks
    assert task.score(task.rows(trained.model))[0] >= 0.925
    check_calibration(trained, 300)


def test_efficientnet_calibrates_on_other_pictures() -> None:
    check_calibration(efficientnet_lite0(), 120)


@pytest.mark.slow
def test_minilm_agrees_with_people() -> None:
    trained = minilm()
    check_calibration(trained, 300)
    found = {task.metric: task.score(task.rows(trained.model))[0] for task in trained.tasks}
    assert found["Pearson's r on 50 Lee documents"] == pytest.approx(0.654, abs=0.002)
    assert found["Spearman's r on WordSim353"] == pytest.approx(0.729, abs=0.002)
    assert len(found) == 5


@NEEDS_FRACAST
def test_the_forecaster_is_the_package_s_own() -> None:
    from fracast.inference import FracastModel

    from benchmarks.trained.forecasts import _scored_series, _window, folder_of

    trained = fracast()
    past = _scored_series(folder_of("statsmodels", "bench") / "datasets", "co2")[:-48]
    window = _window(past, np.empty(0), 52)
    inputs = tuple(torch.from_numpy(each)[None] for each in (window.values, window.observed))
    mine = call(trained.model, inputs)[0].numpy() * window.span + window.low
    assert mine == pytest.approx(FracastModel.from_pretrained(weights="fp32").forecast(past), abs=1e-3)
    check_calibration(trained, 80)


@NEEDS_FRACAST
def test_fracast_is_better_than_the_last_year_on_elnino() -> None:
    trained = fracast()
    task = next(task for task in trained.tasks if "elnino" in task.metric)
    peer = float(task.metric.split("naive ")[1].rstrip(")"))
    assert task.score(task.rows(trained.model))[0] < peer
