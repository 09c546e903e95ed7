"""Scores of the trained models, each with its standard error, in eager PyTorch and compiled by burnish.

python -m benchmarks.trained [--filter minilm,digits]
"""

from __future__ import annotations

import argparse
import logging
import warnings

import burnish
from benchmarks.trained import MODELS, NotInstalled, Trained


def show(trained: Trained) -> None:
    """Print the scores of one model, and by how much those of the compiled one are worse."""
    parameters = sum(each.numel() for each in trained.model.parameters())
    samples = sum(_samples(inputs) for inputs in trained.calibration)
    print(f"{trained.name}: {parameters / 1e6:.2f} M parameters, {samples} samples for calibration", flush=True)
    compiled = burnish.compile(
        trained.model, inputs=trained.inputs, dynamic_shapes=trained.dynamic_shapes, backend="onnx"
    )
    for task in trained.tasks:
        reference, rows = task.rows(trained.model), task.rows(compiled)
        drop, drop_error = task.drop(rows, reference)
        (score, error), (after, _) = task.score(reference), task.score(rows)
        print(f"    {task.metric}: {score:.4f} +- {error:.4f}; burnish, onnx: {after:.4f}, worse by {drop:.5f} "
              f"+- {drop_error:.5f}", flush=True)  # fmt: skip


def _samples(inputs: object) -> int:
    tensors = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)  # type: ignore[call-overload]
    return int(tensors[0].shape[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only models whose name contains one of these, comma-separated")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for name, load in MODELS.items():
        if any(each in name for each in chosen.filter.split(",")):
            try:
                show(load())
            except NotInstalled as missing:
                print(f"{name}: left out, {missing}")


if __name__ == "__main__":
    main()
