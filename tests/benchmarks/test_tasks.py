"""Scores, their standard errors and those of differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.trained.sentences import _pearson, _ranks
from benchmarks.trained.task import Lazy, Task, leave_one_out, mean_of


def task_of(statistic, lower: bool = False) -> Task:
    return Task("score", [(torch.arange(4.0),)], lambda _, outputs: outputs, statistic, lower)


def test_the_error_of_a_mean_is_the_known_one() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    mean, error = task_of(mean_of(lambda rows: rows)).score(values)
    assert mean == pytest.approx(float(values.mean()))
    assert error == pytest.approx(float(values.std()) / 50**0.5)


def test_a_drop_is_paired_and_positive_where_worse() -> None:
    reference = torch.tensor([1.0, 1, 1, 0, 0, 1, 1, 1])
    worse = reference.clone()
    worse[0] = 0
    task = task_of(mean_of(lambda rows: rows))
    drop, error = task.drop(worse, reference)
    assert (drop, error) == (pytest.approx(1 / 8), pytest.approx(float((reference - worse).std()) / 8**0.5))
    assert error < task.score(reference)[1]
    assert task.drop(reference, reference) == (0, 0)
    assert task_of(mean_of(lambda rows: rows), lower=True).drop(worse, reference)[0] == pytest.approx(-1 / 8)


def test_the_error_of_a_correlation_is_that_of_repeated_samples() -> None:
    random = np.random.default_rng(0)

    def sample() -> tuple[float, float]:
        x = random.normal(size=200)
        y = torch.from_numpy(0.6 * x + 0.8 * random.normal(size=200))
        return task_of(leave_one_out(200, lambda rows, units: _pearson(rows.numpy()[units], x[units]))).score(y)

    found = np.array([sample() for _ in range(60)])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(ddof=1), rel=0.25)


def test_ranks_share_the_mean_of_equal_values() -> None:
    assert _ranks(np.array([3.0, 1, 3, 2, 3])).tolist() == [4, 1, 4, 2, 4]


def test_rows_join_batches_of_any_kind() -> None:
    batches = Lazy(3, lambda index: {"x": torch.full((index + 1, 2), float(index))})
    task = Task("score", batches, lambda inputs, outputs: outputs - inputs["x"], mean_of(lambda rows: rows[:, 0]))
    rows = task.rows(lambda x: 2 * x)
    assert rows[:, 0].tolist() == [0, 1, 1, 2, 2, 2]
    assert len(list(batches)) == 3
