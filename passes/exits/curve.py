"""The curve: what settings of thresholds lose and cost, as numbers or as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from burnish.compiler.atomic import atomic_path
from burnish.compiler.errors import MissingDependencyError
from burnish.passes.exits.choice import Choice

__all__ = ["write_curve"]


def write_curve(path: Path, choice: Choice, metric: str, max_drop: float) -> None:
    """Write what every setting loses and costs.

    Args:
        path: a .json or .svg.
        choice: the settings, and the samples that they were tested on.
        metric: what is lost.
        max_drop: the bound.

    Raises:
        InputError: the file cannot be written.
        MissingDependencyError: a plot needs matplotlib.
    """
    tested, found, held = choice.tested, choice.found, choice.held
    costs, lost = [tested.cost(each) for each in found], [float(tested.loss(each).mean()) for each in found]
    with atomic_path(path) as temporary:
        if path.suffix == ".svg":
            _plot(temporary, costs, lost, held, metric, max_drop)
            return
        points = [
            {
                "limits": [limit if np.isfinite(limit) else None for limit in each.limits],
                "cost": cost,
                f"lost {metric}": loss,
                "holds": index < held,
            }
            for index, (each, cost, loss) in enumerate(zip(found, costs, lost, strict=True))
        ]
        temporary.write_text(json.dumps(points, indent=1) + "\n")


def _plot(path: Path, costs: Sequence[float], lost: Sequence[float], held: int, metric: str, max_drop: float) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("a plot of exits needs matplotlib: pip install matplotlib") from error
    matplotlib.use("svg")
    # Names of shapes in the file are drawn from it: the same curve is the same file.
    matplotlib.rcParams["svg.hashsalt"] = "burnish"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    percents = [-100 * each for each in lost]
    axes.plot(costs, percents, color="tab:gray", linewidth=1)
    axes.plot(costs[:held], percents[:held], "o", color="tab:blue", label="holds")
    axes.plot(costs[held:], percents[held:], "x", color="tab:red", label="not told apart from more")
    axes.axhline(-100 * max_drop, linestyle="--", color="black", linewidth=0.8)
    axes.set_xlabel("FLOPs, whole model = 1")
    axes.set_ylabel(f"{metric}, points from the whole model")
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
