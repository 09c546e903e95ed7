"""`make demo`: compile two trained networks to ONNX and TorchScript and show what it gained.

For each: the pass report, the drift against the original on real inputs, the score before and after, and the latency
side by side with eager PyTorch, candidates taking turns in one run.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import burnish
from benchmarks.timing import interleave
from benchmarks.trained import Trained, call, efficientnet_lite0, minilm
from burnish.compiler.numerics import worst_drift

ALLOWED_DRIFT = 1e-4


def leaves(outputs: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(outputs)


def show(trained: Trained) -> float:
    """Compile `trained` for both backends, print what came of it, and return the worst drift."""
    parameters = sum(each.numel() for each in trained.model.parameters())
    print(f"\n=== {trained.name}: {parameters / 1e6:.1f} M parameters, trained ===")
    expected = call(trained.model, trained.data)
    task = trained.tasks[0]
    candidates: dict[str, Any] = {"eager PyTorch": lambda: call(trained.model, trained.one)}
    rows = [("eager PyTorch", 0.0, task.score(task.keep(trained.data, expected))[0])]
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for backend, suffix in (("onnx", ".onnx"), ("torchscript", ".pt")):
            compiled = burnish.compile(
                trained.model, inputs=trained.inputs, dynamic_shapes=trained.dynamic_shapes, backend=backend
            )
            print(f"\n--- burnish.compile(model, inputs=..., backend={backend!r}) ---")
            print(compiled.report)
            path = Path(folder) / f"model{suffix}"
            compiled.save(path)
            loaded = burnish.load(path)
            actual = call(loaded, trained.data)
            found = worst_drift(leaves(actual), leaves(expected))
            worst = max(worst, found)
            rows.append((f"burnish, {backend}", found, task.score(task.keep(trained.data, actual))[0]))
            candidates[f"burnish, {backend}"] = lambda loaded=loaded: call(loaded, trained.one)
        timings = interleave(candidates)
    error = task.score(task.keep(trained.data, expected))[1]
    print(f"\n{'on real inputs':22} {'drift':>8}  {'ms, batch 1':>11}  {'time / eager':>16}  {task.metric}")
    for name, found, score in rows:
        timing = timings[name]
        drift = f"{found:.1e}" if found else "-"
        ratio = f"{timing.ratio:.2f} +- {timing.spread:.2f}"
        print(f"{name:22} {drift:>8}  {timing.median * 1e3:11.2f}  {ratio:>16}  {score:.3f} +- {error:.3f}")
    return worst


def main() -> int:
    start = time.perf_counter()
    worst = max(show(efficientnet_lite0()), show(minilm()))
    print(f"\nworst drift {worst:.1e} (allowed {ALLOWED_DRIFT:.0e}); {time.perf_counter() - start:.0f} s in all")
    return 0 if worst <= ALLOWED_DRIFT else 1


if __name__ == "__main__":
    raise SystemExit(main())
