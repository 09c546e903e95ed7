"""The time-series forecaster Fracast on the series that statsmodels ships.

Yearly sunspots, weekly CO2 and monthly sea surface temperatures (elnino), each forecast over one season, at most the 48
steps that the model gives at once, from all that came before; the last season repeated is the peer.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.trained.task import Inputs, Task, Trained, folder_of, mean_of

__all__ = ["fracast"]

_CONTEXT, _HORIZON, _QUANTILES = 2048, 48, 9
_BATCH = 4
# Observations before the first forecast, in seasons.
_BEFORE = 8
_SEASONS = {"sunspots": 11, "co2": 52, "elnino": 12}


def fracast() -> Trained:
    """Return the forecaster: (batch, 2048) in 0..1 and whether each is observed, to 9 quantiles of 48 steps.

    Calibration: the quarterly, monthly and yearly series macrodata, elec_equip and nile, cut and
    stretched to several lengths.
    """
    folder = folder_of("statsmodels", "bench") / "datasets"
    windows = {name: _windows(_scored_series(folder, name), season) for name, season in _SEASONS.items()}
    tasks = tuple(_task(name, found) for name, found in windows.items())
    pasts = _calibration_pasts(folder)
    order = np.random.default_rng(0).permutation(len(pasts))
    calibration = _batches([_window(pasts[i], np.empty(0), 1) for i in order])
    first = _batches(windows["co2"])[0]
    assert isinstance(first, tuple)
    two, one = ((first[0][:count], first[1][:count]) for count in (2, 1))
    return Trained("Fracast", _network(), two, one, first, calibration, tasks)


@dataclass(frozen=True)
class _Window:
    values: np.ndarray
    observed: np.ndarray
    low: float
    span: float
    truth: np.ndarray
    naive: np.ndarray


def _task(name: str, windows: list[_Window]) -> Task:
    steps = len(windows[0].truth)
    truth, naive = (np.stack([getattr(each, kind) for each in windows]) for kind in ("truth", "naive"))
    low, span = (np.array([[getattr(each, kind)] for each in windows]) for kind in ("low", "span"))
    peer = float(np.nanmean(np.abs(naive - truth), axis=1).mean())

    def errors(rows: torch.Tensor) -> torch.Tensor:
        forecast = rows.double().numpy()[:, :steps] * span + low
        return torch.from_numpy(np.nanmean(np.abs(forecast - truth), axis=1))

    metric = f"MAE on {name}, {len(windows)} forecasts of {steps} steps (seasonal naive {peer:.3f})"
    return Task(metric, _batches(windows), _median, mean_of(errors), lower=True)


def _median(_: Inputs, outputs: Any) -> torch.Tensor:
    rows: torch.Tensor = outputs[:, :, _QUANTILES // 2]
    return rows


def _network() -> torch.nn.Module:
    folder_of("fracast", "bench")
    from fracast.inference import FracastModel

    class Forecaster(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = FracastModel.from_pretrained(weights="fp32")
            self.core, self.head = whole.core, whole.head

        def forward(self, values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
            valid = observed.unsqueeze(1)
            hidden = self.core(values.unsqueeze(1), valid, valid.float())
            head: Any = self.head
            out: torch.Tensor = head.forward_horizon(hidden, last_obs=values[:, -1:], ctx=values, ctx_mask=observed)
            return out

    return Forecaster().eval()


def _windows(series: np.ndarray, season: int) -> list[_Window]:
    # Targets do not overlap, so that they count as independent.
    steps = min(season, _HORIZON)
    starts = range(_BEFORE * season, len(series) - steps + 1, steps)
    return [_window(series[:start], series[start : start + steps], season) for start in starts]


def _window(past: np.ndarray, truth: np.ndarray, season: int) -> _Window:
    """Scale as Fracast's own `FracastModel.forecast` does."""
    tail = past[-_CONTEXT:]
    known = np.isfinite(tail)
    low, span = float(np.nanmin(tail)), max(float(np.nanmax(tail) - np.nanmin(tail)), 1e-5)
    values, observed = np.zeros(_CONTEXT, np.float32), np.zeros(_CONTEXT, bool)
    values[-len(tail) :] = np.where(known, (tail - low) / span, 0)
    observed[-len(tail) :] = known
    return _Window(values, observed, low, span, truth, _filled(past)[-season:][: len(truth)])


def _batches(windows: list[_Window]) -> list[Inputs]:
    parts = np.array_split(np.arange(len(windows)), max(len(windows) // _BATCH, 1))
    return [
        tuple(torch.from_numpy(np.stack([getattr(windows[i], kind) for i in part])) for kind in ("values", "observed"))
        for part in parts
    ]


def _scored_series(folder: Path, name: str) -> np.ndarray:
    rows = _columns(folder / name / f"{name}.csv")
    return rows[:, 1:].reshape(-1)


def _calibration_pasts(folder: Path) -> list[np.ndarray]:
    series = [_columns(folder / name / f"{name}.csv")[:, 1] for name in ("nile", "elec_equip")]
    series += list(_columns(folder / "macrodata" / "macrodata.csv")[:, 2:].T)
    short = [each[:end] for each in series for end in (100, 150, 200, 250) if len(each) >= end]
    # No long series is left: stretched ones stand for them.
    return short + [_stretched(each, length) for each in series for length in (500, 1000, _CONTEXT)]


def _stretched(series: np.ndarray, length: int) -> np.ndarray:
    found: np.ndarray = np.interp(np.linspace(0, len(series) - 1, length), np.arange(len(series)), series)
    return found


def _columns(path: Path) -> np.ndarray:
    with path.open() as file:
        rows = list(csv.reader(file))[1:]
    return np.array([[_number(cell) for cell in row] for row in rows])


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _filled(series: np.ndarray) -> np.ndarray:
    """Return `series` with gaps closed by the value before, for the naive forecast."""
    known = np.isfinite(series)
    last: np.ndarray = np.maximum.accumulate(np.where(known, np.arange(len(series)), 0))
    found: np.ndarray = series[last]
    return found
